"""The pool of worker processes, over workers that start no process."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from fastwan.engines import isolated
from fastwan.engines.isolated import WorkerPool
from fastwan.parallel import in_order


class FakeWorker:
    """Builds by calling its source."""

    made = 0

    def __init__(self, backend: str) -> None:
        assert backend == "tensorrt-rtx"
        FakeWorker.made += 1
        self.closed = False

    def build(self, source: Any, options: object, progress: object) -> Any:
        assert not self.closed
        return source()

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> WorkerPool:
    monkeypatch.setattr(isolated, "Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "made", 0)
    return WorkerPool("tensorrt-rtx")


def build(pool: WorkerPool, source: Any) -> Any:
    return pool.build(source, None, None)  # type: ignore[arg-type]


def test_a_worker_that_has_built_is_used_again(pool: WorkerPool) -> None:
    assert [build(pool, str) for _ in range(3)] == [""] * 3
    assert FakeWorker.made == 1
    assert pool.idle == pool.workers != []


def test_builds_at_once_have_a_worker_each(pool: WorkerPool) -> None:
    together = threading.Barrier(2)
    built = list(in_order(lambda _: build(pool, lambda: together.wait(60)), range(2), 2))
    assert len(built) == FakeWorker.made == len(pool.idle) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, None])
def test_a_worker_whose_build_failed_is_not_used_again(
    pool: WorkerPool, error: type[BaseException] | None
) -> None:
    def source() -> str:
        if error is not None:
            raise error
        return "plan"

    if error is None:
        build(pool, source)
    else:
        with pytest.raises(error):
            build(pool, source)
    assert len(pool.workers) == len(pool.idle) == (error is None)
    build(pool, lambda: "plan")
    assert FakeWorker.made == (1 if error is None else 2)


def test_close_ends_all_and_a_later_build_starts_anew(pool: WorkerPool) -> None:
    build(pool, lambda: "plan")
    (worker,) = pool.workers
    pool.close()
    assert isinstance(worker, FakeWorker)
    assert worker.closed
    assert pool.workers == pool.idle == []
    assert build(pool, lambda: "plan") == "plan"
    assert FakeWorker.made == 2
