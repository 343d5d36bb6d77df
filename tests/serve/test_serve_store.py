"""The store: what it was told is there when the database is opened again."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fastwan.errors import BadInput
from fastwan.serve.jobs import Asked, Job, new_id
from fastwan.serve.store import Store

ASKED = Asked(
    model="m", prompt="a fox", seed=7, sampler="dmd", steps=3, height=32, width=48, num_frames=5,
    fps=16,
)  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite3"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = Store(path)
    yield store
    store.close()


def added(store: Store, client: str = "a", key: str | None = None, seed: int = 7) -> Job:
    job = Job(id=new_id(), client=client, asked=replace(ASKED, seed=seed), created_at=100.5)
    store.add(job, key=key, digest="d")
    return job


def finished(store: Store, size: int, now: float = 200.0, keep: float = 50.0) -> Job:
    job = added(store)
    assert store.begin(job.id, now)
    assert store.finish(job.id, "completed", now=now, expires_at=now + keep, size=size)
    return job


def test_a_job_is_read_as_it_was_written(store: Store, path: Path) -> None:
    job = added(store, seed=(1 << 64) - 1)
    assert store.get(job.id) == job
    assert store.begin(job.id, 150.0) == replace(
        job, status="in_progress", attempts=1, started_at=150.0
    )
    assert store.finish(
        job.id, "failed", now=160.0, expires_at=170.0, timings={"total": 1.5}, error=("c", "why")
    )
    other = Store(path)
    assert other.get(job.id) == replace(
        job, status="failed", attempts=1, started_at=150.0, completed_at=160.0, expires_at=170.0,
        timings={"total": 1.5}, error=("c", "why"),
    )  # fmt: skip
    other.close()


def test_only_a_queued_job_is_begun_and_only_an_unfinished_one_ends(store: Store) -> None:
    job = added(store)
    assert store.begin(job.id, 1.0) is not None
    assert store.begin(job.id, 2.0) is None
    assert store.finish(job.id, "completed", now=3.0, expires_at=4.0, size=9)
    assert not store.finish(job.id, "cancelled", now=3.0, expires_at=4.0)
    found = store.get(job.id)
    assert found is not None
    assert found.status == "completed"


@pytest.mark.parametrize(("counted", "attempts"), [(True, 2), (False, 1)])
def test_an_interrupted_job_is_queued_again(store: Store, counted: bool, attempts: int) -> None:
    job = added(store)
    store.begin(job.id, 1.0)
    store.queue_again(job.id, counted=counted)
    again = store.begin(job.id, 2.0)
    assert again is not None
    assert again.attempts == attempts


def test_unfinished_jobs_come_in_the_order_of_their_acceptance(store: Store) -> None:
    first, second, third = added(store), added(store), added(store)
    store.begin(second.id, 1.0)
    store.begin(third.id, 1.0)
    store.finish(third.id, "failed", now=2.0, expires_at=3.0)
    assert [job.id for job in store.unfinished()] == [first.id, second.id]


def test_a_key_is_a_clients_own(store: Store) -> None:
    job = added(store, "a", "k")
    added(store, "b", "k")
    assert store.of_key("a", "k") == (job, "d")
    assert store.of_key("a", "other") is None
    with pytest.raises(sqlite3.IntegrityError):
        added(store, "a", "k")
    store.remove(job.id)
    added(store, "a", "k")


@pytest.mark.parametrize("newest_first", [True, False])
def test_pages_hold_every_job_once(store: Store, newest_first: bool) -> None:
    ids = [added(store, client).id for client in "ababa"]
    wanted = ids[::-1] if newest_first else ids
    seen: list[str] = []
    more, after = True, None
    while more:
        jobs, more = store.page(client=None, after=after, limit=2, newest_first=newest_first)
        seen += [job.id for job in jobs]
        after = seen[-1]
    assert seen == wanted
    mine, _ = store.page(client="a", after=None, limit=9, newest_first=newest_first)
    assert [job.id for job in mine] == [i for i in wanted if ids.index(i) % 2 == 0]
    unknown, _ = store.page(client=None, after="none", limit=9, newest_first=newest_first)
    assert [job.id for job in unknown] == wanted


def test_jobs_are_forgotten_when_their_time_is_over(store: Store) -> None:
    early, late, waiting = finished(store, 1, 100.0), finished(store, 1, 101.0), added(store)
    assert store.remove_expired(150.0, 99) == [early.id]
    assert store.get(early.id) is None
    assert store.get(late.id) is not None
    assert store.get(waiting.id) is not None


def test_no_more_finished_jobs_are_kept_than_were_asked_for(store: Store) -> None:
    waiting = added(store)
    ids = [finished(store, 1).id for _ in range(4)]
    assert store.remove_expired(0.0, 4) == []
    assert store.remove_expired(0.0, 2) == ids[:2]
    assert store.get(waiting.id) is not None
    assert store.get(ids[2]) is not None


def test_the_oldest_videos_make_room(store: Store) -> None:
    old, middle, new = (finished(store, 40, now) for now in (1.0, 2.0, 3.0))
    assert store.drop_contents(120) == []
    assert store.drop_contents(80) == [old.id]
    assert store.with_content() == {middle.id: 40, new.id: 40}
    assert store.drop_contents(10) == [middle.id]
    assert store.with_content() == {new.id: 40}
    found = store.get(old.id)
    assert found is not None
    assert (found.status, found.has_content) == ("completed", False)


@pytest.mark.parametrize(
    ("content", "message"), [(b"no database, but some text " * 50, "no table of jobs"), (b"", "")]
)
def test_what_is_no_table_of_jobs_is_refused(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    if not message:
        Store(path).close()
        return
    with pytest.raises(BadInput, match=message):
        Store(path)


@pytest.mark.parametrize(("version", "refused"), [(1, False), (2, True)])
def test_jobs_of_another_version_are_refused(path: Path, version: int, refused: bool) -> None:
    Store(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    if refused:
        with pytest.raises(BadInput, match="jobs of version 2, this tool reads 1"):
            Store(path)
    else:
        Store(path).close()
