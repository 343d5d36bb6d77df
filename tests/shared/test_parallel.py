"""Results of threads in order, few at a time, and nothing begun behind a failure."""

from __future__ import annotations

import gc
import threading

import pytest

from fastwan.parallel import collector_paused, in_order


@pytest.mark.parametrize("workers", [1, 2, 5, 50])
@pytest.mark.parametrize("ahead", [0, 3])
def test_results_come_in_the_order_of_the_items(workers: int, ahead: int) -> None:
    items = list(range(20))
    made = list(in_order(lambda item: item * item, items, workers, ahead=ahead))
    assert made == [(item, item * item) for item in items]
    assert list(in_order(lambda item: item, [], workers, ahead=ahead)) == []


def test_workers_run_at_once() -> None:
    barrier = threading.Barrier(3, timeout=30)
    assert len(list(in_order(lambda _: barrier.wait(), range(3), 3))) == 3


@pytest.mark.parametrize(("workers", "ahead"), [(2, 0), (2, 2), (3, 1)])
def test_no_more_is_begun_than_was_asked_for(workers: int, ahead: int) -> None:
    begun: list[int] = []
    first = threading.Event()

    def make(item: int) -> int:
        begun.append(item)
        if item == 0:
            first.wait(30)
        return item

    results = in_order(make, range(20), workers, ahead=ahead)
    threading.Timer(0.2, first.set).start()
    next(results)
    # The first was slow; what was begun beside it, and one more in its place.
    assert len(begun) <= workers + ahead + 1
    results.close()
    assert len(begun) < 20


def test_a_failure_is_raised_in_its_turn_and_stops_the_rest() -> None:
    begun: list[int] = []
    stopped: list[bool] = []
    release = threading.Event()

    def make(item: int) -> int:
        begun.append(item)
        if item == 1:
            raise ValueError("one")
        if item == 2:
            release.wait(30)
        return item

    def stop() -> None:
        stopped.append(True)
        release.set()

    results = in_order(make, range(10), 2, ahead=1, stop=stop)
    assert next(results) == (0, 0)
    with pytest.raises(ValueError, match="one"):
        next(results)
    assert stopped == [True]
    assert set(begun) <= {0, 1, 2, 3}


def test_stop_is_not_called_when_all_is_done() -> None:
    stopped: list[bool] = []
    for _ in in_order(lambda item: item, range(5), 2, stop=lambda: stopped.append(True)):
        pass
    assert stopped == []


def test_the_collector_runs_again_after_a_pause() -> None:
    assert gc.isenabled()

    def fail() -> None:
        with collector_paused():
            assert not gc.isenabled()
            with collector_paused():
                pass
            assert not gc.isenabled()
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert gc.isenabled()
