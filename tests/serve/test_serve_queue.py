"""The queue: bounded, one client's turn after another's."""

from __future__ import annotations

import threading

import pytest

from fastwan.serve.queue import FairQueue, QueueFull


def taken(queue: FairQueue) -> list[str | None]:
    return [queue.take() for _ in range(len(queue))]


def test_clients_take_turns_and_a_client_keeps_its_order() -> None:
    queue = FairQueue(10, 10)
    for job in ("a1", "a2", "a3", "b1", "a4", "c1", "b2"):
        queue.put(job, job[0])
    assert taken(queue) == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_a_client_that_comes_again_is_behind_those_that_wait() -> None:
    queue = FairQueue(10, 10)
    queue.put("a1", "a")
    queue.put("b1", "b")
    assert queue.take() == "a1"
    queue.put("a2", "a")
    assert taken(queue) == ["b1", "a2"]


@pytest.mark.parametrize(
    ("client", "of_client"), [("a", True), ("b", None)], ids=["share used", "share left"]
)
def test_a_client_has_its_share(client: str, of_client: bool | None) -> None:
    queue = FairQueue(3, 2)
    queue.put("a1", "a")
    queue.put("a2", "a")
    if of_client is None:
        queue.require_room(client)
        return
    with pytest.raises(QueueFull) as refused:
        queue.require_room(client)
    assert refused.value.of_client


def test_a_full_queue_is_full_for_everybody() -> None:
    queue = FairQueue(2, 2)
    queue.put("a1", "a")
    queue.require_room("b")
    queue.put("b1", "b")
    with pytest.raises(QueueFull) as refused:
        queue.require_room("c")
    assert not refused.value.of_client
    queue.take()
    queue.require_room("c")


def test_a_job_is_taken_out_once() -> None:
    queue = FairQueue(4, 4)
    for job in ("a1", "a2", "b1"):
        queue.put(job, job[0])
    assert queue.remove("a1")
    assert not queue.remove("a1")
    assert queue.remove("b1")
    assert taken(queue) == ["a2"]
    queue.require_room("b")


def test_whoever_waits_is_woken_by_a_job_and_by_the_end() -> None:
    queue = FairQueue(4, 4)
    got: list[str | None] = []
    thread = threading.Thread(target=lambda: got.extend([queue.take(), queue.take()]))
    thread.start()
    queue.put("a1", "a")
    while len(queue):
        pass
    queue.close()
    thread.join()
    assert got == ["a1", None]


def test_a_closed_queue_keeps_what_waits() -> None:
    queue = FairQueue(4, 4)
    queue.put("a1", "a")
    queue.close()
    assert queue.take() is None
    assert len(queue) == 1


def test_a_place_is_the_number_of_jobs_that_are_taken_before() -> None:
    queue = FairQueue(16, 16)
    for client, jobs in {"a": 4, "b": 1, "c": 2}.items():
        for number in range(jobs):
            queue.put(f"{client}{number}", client)
    queue.remove("a1")
    waiting = ["a0", "a2", "a3", "b0", "c0", "c1"]
    while waiting:
        places = {job_id: queue.place(job_id) for job_id in waiting}
        assert sorted(places.values()) == list(range(len(waiting)))  # type: ignore[type-var]
        taken = queue.take()
        assert taken is not None
        assert places[taken] == 0
        waiting.remove(taken)
        # Whatever is taken, the others come one place nearer.
        assert all(queue.place(job_id) == places[job_id] - 1 for job_id in waiting)  # type: ignore[operator]
    assert queue.place("a0") is None
