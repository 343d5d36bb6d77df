"""Replicas behind streamed calls: the server over them, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from fastwan.errors import BadInput, FastWanError
from fastwan.serve.app import create_app
from fastwan.serve.jobs import Asked
from fastwan.serve.offer import resolve
from fastwan.serve.queue import FairQueue
from fastwan.serve.ray.messages import Broken, Failed, Frame, Made, Message, Step
from fastwan.serve.ray.replica import Replica
from fastwan.serve.settings import Settings
from fastwan.serve.wire import CreateVideo
from testkit.fake_player import SHAPE, FakePlayer, serving, until
from testkit.fake_replicas import FakeReplicas


@contextmanager
def over(replicas: FakeReplicas, folder: Path, **settings: int) -> Iterator[TestClient]:
    """A client of a server whose videos are made by replicas."""
    app = create_app(Settings(folder=folder, **settings), replicas.player())  # type: ignore[arg-type]
    with TestClient(app, base_url="http://localhost") as client:
        yield client


def ask(client: TestClient, seed: int) -> str:
    return str(client.post("/v1/videos", json={"prompt": f"fox {seed}", "seed": seed}).json()["id"])


def messages(replica: Replica, asked: Asked) -> list[Message]:
    async def all_of() -> list[Message]:
        return [message async for message in replica.play(asked)]

    return asyncio.run(all_of())


@pytest.fixture
def asked(player: FakePlayer) -> Asked:
    return resolve(player.offer, CreateVideo(prompt="fox", seed=7), longest_prompt=9)


def test_a_replica_tells_steps_frames_and_the_end(player: FakePlayer, asked: Asked) -> None:
    *told, end = messages(Replica(player), asked)
    assert [m.done for m in told if isinstance(m, Step)] == [1, 2, 3]
    frames = [m.pixels for m in told if isinstance(m, Frame)]
    assert len(frames) == SHAPE.num_frames
    assert all((frame == 7).all() for frame in frames)
    assert isinstance(end, Made)
    assert end.timings.keys() == {"step_0", "step_1", "step_2", "total"}


def test_the_video_is_that_of_a_player_without_replicas(tmp_path: Path) -> None:
    with serving(tmp_path / "alone") as client:
        job = ask(client, 3)
        until(client, job, "completed")
        alone = client.get(f"/v1/videos/{job}/content").content
    with over(FakeReplicas(FakePlayer(), FakePlayer()), tmp_path / "served", slots=2) as client:
        jobs = [ask(client, seed) for seed in (3, 90)]
        for job in jobs:
            assert until(client, job, "completed")["timings"]
        contents = [client.get(f"/v1/videos/{job}/content").content for job in jobs]
    assert contents[0] == alone
    assert contents[1] != alone


@pytest.mark.parametrize("slots", [1, 2])
def test_there_are_as_many_videos_at_a_time_as_slots(tmp_path: Path, slots: int) -> None:
    players = FakePlayer(), FakePlayer()
    for each in players:
        each.gate.clear()
    with over(FakeReplicas(*players), tmp_path, slots=slots) as client:
        jobs = [ask(client, seed) for seed in range(3)]
        for job in jobs[:slots]:
            until(client, job, "in_progress")
        states = [client.get(f"/v1/videos/{job}").json()["status"] for job in jobs]
        assert states == ["in_progress"] * slots + ["queued"] * (3 - slots)
        for each in players:
            each.gate.set()
        for job in jobs:
            until(client, job, "completed")


@pytest.mark.parametrize("dies_at", [0, 2, 5, None])
def test_a_job_whose_replica_dies_is_run_again(tmp_path: Path, dies_at: int | None) -> None:
    replicas = FakeReplicas(FakePlayer(), FakePlayer())
    replicas.deaths = [dies_at]
    with over(replicas, tmp_path) as client:
        job = ask(client, 5)
        assert until(client, job, "completed", "failed")["status"] == "completed"
        assert client.get(f"/v1/videos/{job}/content").content
    assert replicas.calls == (1 if dies_at is None else 2)


@pytest.mark.parametrize("deaths", [2, 3])
def test_a_job_whose_replicas_die_too_often_fails(tmp_path: Path, deaths: int) -> None:
    replicas = FakeReplicas(FakePlayer())
    replicas.deaths = [1] * deaths
    with over(replicas, tmp_path, attempts=3) as client:
        video = until(client, ask(client, 5), "completed", "failed")
        later = until(client, ask(client, 6), "completed", "failed")
    assert later["status"] == "completed"
    if deaths == 2:
        assert video["status"] == "completed"
    else:
        assert video["error"] == {
            "code": "interrupted",
            "message": "what made this video ended 3 times while it did",
        }


def test_a_job_that_is_cancelled_frees_its_replica(tmp_path: Path) -> None:
    player = FakePlayer()
    player.gate.clear()
    with over(FakeReplicas(player), tmp_path) as client:
        first, second = ask(client, 1), ask(client, 2)
        until(client, first, "in_progress")
        client.post(f"/v1/videos/{first}/cancel")
        until(client, first, "cancelled")
        player.gate.set()
        until(client, second, "completed")
    assert player.begun == ["fox 1", "fox 2"]


@pytest.mark.parametrize("error", [BadInput("no such seed"), ValueError("of another\nlibrary")])
def test_what_a_replica_cannot_make_fails(tmp_path: Path, error: Exception) -> None:
    player = FakePlayer()
    replicas = FakeReplicas(player)
    with over(replicas, tmp_path) as client:
        player.fault = error
        video = until(client, ask(client, 1), "completed", "failed")
        assert until(client, ask(client, 2), "completed", "failed")["status"] == "completed"
    code = "bad_input" if isinstance(error, FastWanError) else "internal_error"
    assert video["error"]["code"] == code  # type: ignore[index]
    replicas.replicas[0].check_health()


def test_a_replica_whose_player_is_broken_asks_to_be_replaced(
    player: FakePlayer, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = Replica(player)
    player.fault = RuntimeError("device lost")
    (end,) = messages(replica, asked)
    assert isinstance(end, Failed)
    replica.check_health()

    def still_broken() -> None:
        raise RuntimeError("device lost")

    monkeypatch.setattr(player, "warm_up", still_broken)
    player.fault = RuntimeError("device lost")
    assert messages(replica, asked) == [Broken("RuntimeError: device lost")]
    with pytest.raises(RuntimeError, match="device lost"):
        replica.check_health()


@pytest.mark.parametrize("first", [False, True])
def test_a_job_that_was_begun_goes_before_its_clients_others(first: bool) -> None:
    queue = FairQueue(9, 9)
    queue.put("later", "a")
    queue.put("begun", "a", first=first)
    assert [queue.take(), queue.take()] == (["begun", "later"] if first else ["later", "begun"])
