"""Jobs from their acceptance to their end, over a player that waits where it is told to."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from fastwan.errors import EnvironmentLacks, VerificationFailed
from fastwan.serve.events import Event
from fastwan.serve.queue import QueueFull
from testkit.fake_player import WAIT, FakePlayer, serving, until


def ask(client: TestClient, prompt: str, **headers: str) -> Any:
    return client.post("/v1/videos", json={"prompt": prompt}, headers=headers)


def held(client: TestClient, player: FakePlayer, prompt: str = "held") -> str:
    """Id of a job that is being made and waits before its first step."""
    player.gate.clear()
    job_id = ask(client, prompt).json()["id"]
    until(client, job_id, "in_progress")
    while prompt not in player.begun:
        pass
    return str(job_id)


def files(folder: Path) -> list[str]:
    return sorted(each.name for each in (folder / "videos").iterdir())


def test_a_job_goes_from_the_queue_to_a_video(client: TestClient, player: FakePlayer) -> None:
    first = held(client, player)
    second = ask(client, "second").json()
    assert second["status"] == "queued"
    assert client.get(f"/v1/videos/{first}").json()["step"] == 0
    assert client.get(f"/v1/videos/{first}/content").status_code == 409
    player.gate.set()
    done = until(client, second["id"], "completed")
    assert (done["progress"], done["step"], done["error"]) == (100, None, None)
    assert {"step_0", "step_2", "write", "queue", "total"} <= done["timings"].keys()
    assert done["expires_at"] == pytest.approx(done["completed_at"] + 86400, abs=1)
    assert player.begun == ["held", "second"]
    content = client.get(f"/v1/videos/{second['id']}/content")
    assert content.headers["content-type"] == "video/mp4"
    assert content.content[4:8] == b"ftyp"


def test_the_step_is_told_while_a_video_is_made(client: TestClient, player: FakePlayer) -> None:
    job_id = held(client, player)
    channel = client.app.state.service.channels.get(job_id)  # type: ignore[attr-defined]
    channel.publish(Event("step", {"step": 2, "steps": 3}))
    video = client.get(f"/v1/videos/{job_id}").json()
    assert (video["step"], video["steps"], video["progress"]) == (2, 3, 67)


@pytest.mark.parametrize("forget", [False, True], ids=["cancel", "delete"])
@pytest.mark.parametrize("waits", [False, True], ids=["made", "queued"])
def test_an_unfinished_job_is_ended(
    client: TestClient, player: FakePlayer, tmp_path: Path, forget: bool, waits: bool
) -> None:
    making = held(client, player)
    queued = ask(client, "queued").json()["id"]
    last = ask(client, "last").json()["id"]
    job_id = queued if waits else making
    if forget:
        answer = client.delete(f"/v1/videos/{job_id}").json()
        assert answer == {"id": job_id, "object": "video.deleted", "deleted": True}
        assert client.get(f"/v1/videos/{job_id}").status_code == 404
    else:
        client.post(f"/v1/videos/{job_id}/cancel")
        video = until(client, job_id, "cancelled")
        assert video["completed_at"] is not None
        refusal = client.get(f"/v1/videos/{job_id}/content")
        assert (refusal.status_code, refusal.json()["error"]["code"]) == (
            404,
            "video_has_no_content",
        )
    player.gate.set()
    until(client, last, "completed")
    assert player.begun == (["held", "last"] if waits else ["held", "queued", "last"])
    assert f"{job_id}.mp4" not in files(tmp_path / "videos")
    assert f"{last}.mp4" in files(tmp_path / "videos")


def test_to_cancel_what_is_done_changes_nothing(client: TestClient) -> None:
    job_id = ask(client, "a").json()["id"]
    before = until(client, job_id, "completed")
    assert client.post(f"/v1/videos/{job_id}/cancel").json() == before
    assert client.get(f"/v1/videos/{job_id}/content").status_code == 200
    assert client.delete(f"/v1/videos/{job_id}").status_code == 200
    assert client.get(f"/v1/videos/{job_id}/content").status_code == 404


@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        (VerificationFailed("a step makes NaN"), "verification_failed", "a step makes NaN"),
        (EnvironmentLacks("the device failed"), "environment_lacks", "the device failed"),
        (RuntimeError("odd\nand long"), "internal_error", "RuntimeError: odd"),
    ],
)
def test_a_failure_is_told_and_the_next_video_is_made(
    client: TestClient, player: FakePlayer, tmp_path: Path, fault: Exception, code: str,
    message: str,
) -> None:  # fmt: skip
    player.fault = fault
    failed = ask(client, "a").json()["id"]
    assert until(client, failed, "failed")["error"] == {"code": code, "message": message}
    done = ask(client, "b").json()["id"]
    until(client, done, "completed")
    assert files(tmp_path / "videos") == [f"{done}.mp4"]


@pytest.mark.parametrize("lost", [2, 3])
def test_a_device_that_fails_in_a_row_ends_the_server(
    client: TestClient, player: FakePlayer, lost: int
) -> None:
    service = client.app.state.service  # type: ignore[attr-defined]
    for index in range(lost):
        player.fault = EnvironmentLacks("the device failed")
        until(client, ask(client, f"a {index}").json()["id"], "failed")
    if lost == 3:
        service.worker.join(WAIT)
        assert client.get("/health").json()["status"] == "failing"
        return
    until(client, ask(client, "b").json()["id"], "completed")
    assert client.get("/health").json()["status"] == "ok"


def test_an_idempotency_key_is_one_job(client: TestClient, player: FakePlayer) -> None:
    first = ask(client, "a", **{"idempotency-key": "k"}).json()
    until(client, first["id"], "completed")
    again = ask(client, "a", **{"idempotency-key": "k"}).json()
    assert (again["id"], again["seed"]) == (first["id"], first["seed"])
    assert again["status"] == "completed"
    other = ask(client, "a", **{"idempotency-key": "other"}).json()
    until(client, other["id"], "completed")
    assert player.begun == ["a", "a"]
    refused = ask(client, "b", **{"idempotency-key": "k"})
    assert refused.status_code == 409
    assert refused.json()["error"]["code"] == "idempotency_key_reused"


@pytest.mark.parametrize(
    ("settings", "status", "code"),
    [
        ({"queue_size": 2, "client_share": 2}, 503, "queue_full"),
        ({"queue_size": 9, "client_share": 2}, 429, "client_share_used"),
    ],
)
def test_what_there_is_no_room_for_is_refused_and_may_come_again(
    tmp_path: Path, settings: dict[str, int], status: int, code: str
) -> None:
    player = FakePlayer()
    with serving(tmp_path / "videos", player, **settings) as client:
        held(client, player)
        waiting = [ask(client, name).json()["id"] for name in ("a", "b")]
        refused = ask(client, "c", **{"idempotency-key": "k"})
        assert refused.status_code == status
        assert refused.json()["error"]["code"] == code
        assert int(refused.headers["retry-after"]) >= 1
        player.gate.set()
        for job_id in waiting:
            until(client, job_id, "completed")
        accepted = ask(client, "c", **{"idempotency-key": "k"})
        assert accepted.status_code == 200
        until(client, accepted.json()["id"], "completed")
    assert player.begun == ["held", "a", "b", "c"]


def test_a_refused_client_is_told_when_half_of_the_queue_is_made(
    client: TestClient, player: FakePlayer
) -> None:
    service = client.app.state.service  # type: ignore[attr-defined]
    service._seconds_a_video = 2.0
    assert service.retry_after(QueueFull(of_client=False)) == 64
    assert service.retry_after(QueueFull(of_client=True)) == 32
    assert service.retry_after() == 2
    service._seconds_a_video = 0.01
    assert service.retry_after(QueueFull(of_client=True)) == 1


def test_a_stopped_server_leaves_its_jobs_to_the_next(tmp_path: Path) -> None:
    folder, player = tmp_path / "videos", FakePlayer()
    with serving(folder, player, drain_seconds=0) as client:
        done = ask(client, "done").json()["id"]
        until(client, done, "completed")
        made = held(client, player)
        waits = ask(client, "waits").json()["id"]
        client.app.state.service.close()  # type: ignore[attr-defined]
    assert player.closed
    assert files(folder) == [f"{done}.mp4"]
    after = FakePlayer()
    with serving(folder, after) as client:
        for job_id in (made, waits):
            until(client, job_id, "completed")
        assert until(client, done, "completed")["seed"] is not None
        assert client.get(f"/v1/videos/{done}/content").status_code == 200
    assert after.begun == ["held", "waits"]


def test_a_draining_server_finishes_what_it_makes_and_takes_nothing_more(tmp_path: Path) -> None:
    folder, player = tmp_path / "videos", FakePlayer()
    with serving(folder, player) as client:
        made = held(client, player)
        waits = ask(client, "waits").json()["id"]
        service = client.app.state.service  # type: ignore[attr-defined]
        service.drain()
        assert not service.is_drained()
        refused = ask(client, "more")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert client.get("/ready").json() == {"status": "draining", "waiting": 1}
        assert client.get("/health").status_code == 200
        player.gate.set()
        until(client, made, "completed")
        while not service.is_drained():
            pass
        assert client.get(f"/v1/videos/{waits}").json()["status"] == "queued"
    assert player.begun == ["held"]


@pytest.mark.parametrize(("attempts", "status"), [(2, "completed"), (3, "failed")])
def test_what_killed_the_server_too_often_is_reported(
    tmp_path: Path, attempts: int, status: str
) -> None:
    folder, player = tmp_path / "videos", FakePlayer()
    with serving(folder, player, drain_seconds=0) as client:
        player.gate.clear()
        job_id = held(client, player)
        client.app.state.service.close()  # type: ignore[attr-defined]
    connection = sqlite3.connect(folder / "jobs.sqlite3")
    with connection:
        connection.execute("UPDATE jobs SET status = 'in_progress', attempts = ?", (attempts,))
    connection.close()
    (folder / "videos" / f"{job_id}.mp4").write_bytes(b"half")
    with serving(folder) as client:
        video = until(client, job_id, "completed", "failed")
    assert video["status"] == status
    assert video["attempts"] == 3
    if status == "failed":
        assert video["error"]["code"] == "interrupted"
        assert files(folder) == []


@pytest.mark.parametrize(("model", "status"), [("fake", "completed"), ("other", "failed")])
def test_a_job_of_another_bundle_is_reported(tmp_path: Path, model: str, status: str) -> None:
    folder, player = tmp_path / "videos", FakePlayer()
    with serving(folder, player, drain_seconds=0) as client:
        held(client, player)
        waits = ask(client, "waits").json()["id"]
        client.app.state.service.close()  # type: ignore[attr-defined]
    after = FakePlayer()
    after.offer = replace(after.offer, model=model)
    with serving(folder, after) as client:
        video = until(client, waits, "completed", "failed")
    assert video["status"] == status
    assert after.begun == (["held", "waits"] if status == "completed" else [])
    if status == "failed":
        assert video["error"]["code"] == "bundle_changed"  # type: ignore[index]


def test_videos_of_no_job_are_deleted_and_other_files_stay(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    with serving(folder) as client:
        done = ask(client, "a").json()["id"]
        until(client, done, "completed")
    for name in (f"video_{'0' * 32}.mp4", "mine.mp4"):
        (folder / "videos" / name).touch()
    with serving(folder):
        assert files(folder) == sorted(["mine.mp4", f"{done}.mp4"])


def test_the_oldest_video_makes_room(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    with serving(folder, keep_bytes=1) as client:
        old = ask(client, "a").json()["id"]
        until(client, old, "completed")
        assert client.get(f"/v1/videos/{old}/content").status_code == 200
        new = ask(client, "b").json()["id"]
        until(client, new, "completed")
        while files(folder) != [f"{new}.mp4"]:
            pass
        gone = client.get(f"/v1/videos/{old}/content")
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "video_has_no_content")


def test_a_job_is_forgotten_when_its_time_is_over(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    with serving(folder) as client:
        ids = [ask(client, name).json()["id"] for name in "ab"]
        for job_id in ids:
            until(client, job_id, "completed")
    connection = sqlite3.connect(folder / "jobs.sqlite3")
    with connection:
        connection.execute("UPDATE jobs SET expires_at = 1 WHERE id = ?", (ids[0],))
    connection.close()
    with serving(folder) as client:
        assert [video["id"] for video in client.get("/v1/videos").json()["data"]] == ids[1:]
    assert files(folder) == [f"{ids[1]}.mp4"]


def test_a_player_that_does_not_warm_up_fails_the_server(tmp_path: Path) -> None:
    player = FakePlayer()
    player.fault = EnvironmentLacks("no GPU")
    with serving(tmp_path / "videos", player) as client:
        service = client.app.state.service  # type: ignore[attr-defined]
        service.worker.join(WAIT)
        assert service.worker.fault is player.fault
        for path in ("/health", "/ready"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()["status"]) == (503, "failing")
