"""Events of a job over HTTP: all from the first on, again from where a reader was, and the last."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import httpx2
import pytest

from fastwan.serve import watching
from testkit.fake_player import WAIT, until
from testkit.picture_player import Listening, PicturePlayer, eventually, listening

STEPS = [("step", {"step": n, "steps": 3}) for n in (1, 2, 3)]
FRAMES = [("frames", {"frames": n, "num_frames": 17}) for n in range(1, 18)]
FIRST = ("first_frame", {"frames": 1, "num_frames": 17})


def begin(client: Any, prompt: str = "a red fox") -> str:
    made = client.post("/v1/videos", json={"prompt": prompt, "seed": 7})
    return str(made.raise_for_status().json()["id"])


class Reader(threading.Thread):
    """Reads a job's events on a thread of its own, as (id, name, data); comments as they are."""

    def __init__(self, client: Any, job_id: str, last: str | None = None) -> None:
        super().__init__(daemon=True)
        self._address = f"{client.base_url}/v1/videos/{job_id}/events"
        self._headers = {} if last is None else {"last-event-id": last}
        self.events: list[tuple[str | None, str, Any]] = []
        self.comments: list[str] = []
        self.start()

    def run(self) -> None:
        with httpx2.stream("GET", self._address, headers=self._headers, timeout=WAIT) as answer:
            fields: dict[str, str] = {}
            for line in answer.iter_lines():
                name, _, value = line.partition(": ")
                if line.startswith(":"):
                    self.comments.append(line)
                elif line:
                    fields[name] = value
                elif fields:
                    data = json.loads(fields["data"])
                    self.events.append((fields.get("id"), fields["event"], data))
                    fields = {}

    def told(self) -> list[tuple[str, Any]]:
        """All events without their ids, once the last has come."""
        self.join(WAIT)
        assert not self.is_alive()
        return [(name, data) for _, name, data in self.events]


def test_every_event_is_told_in_order_to_the_end(client: Any, player: PicturePlayer) -> None:
    player.gate.clear()
    job_id = begin(client)
    reader = Reader(client, job_id)
    eventually(lambda: reader.events)
    player.let_go()
    *events, (name, video) = reader.told()
    assert [each for each in events if each[0] != "queued"] == [
        ("started", {"attempt": 1}), *STEPS, FIRST, *FRAMES,
    ]  # fmt: skip
    assert name == "done"
    assert video == client.get(f"/v1/videos/{job_id}").json()
    assert video["timings"]["first_frame"] < video["timings"]["total"]
    ids = [int(number) for number, *_ in reader.events[:-1] if number is not None]
    assert len(ids) > 3
    assert ids == sorted(set(ids))
    assert reader.events[-1][0] == "end"


def test_a_head_waits_for_nothing(client: Any, server: Listening, player: PicturePlayer) -> None:
    player.gate.clear()
    job_id = begin(client)
    for part, kind in (("events", "text/event-stream; charset=utf-8"), ("stream", "video/mp4")):
        answer = client.head(f"/v1/videos/{job_id}/{part}")
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-type"] == kind
        assert "content-length" not in answer.headers
    assert server.state.watchers.now == 0
    # The connection can be used again: nothing follows the head.
    assert client.get(f"/v1/videos/{job_id}").json()["status"] == "in_progress"
    player.let_go()
    until(client, job_id, "completed")
    assert client.head(f"/v1/videos/{job_id}/stream").headers["content-length"] == str(
        len(client.get(f"/v1/videos/{job_id}/content").content)
    )


def test_a_place_in_the_queue_is_told_when_it_changes(
    client: Any, player: PicturePlayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_TICK", 0.01)
    player.gate.clear()
    begin(client, "before all")
    eventually(lambda: player.begun == ["before all"])
    others = [begin(client, "ahead"), begin(client, "ahead too")]
    reader = Reader(client, begin(client))
    eventually(lambda: reader.events)
    client.post(f"/v1/videos/{others[0]}/cancel")
    eventually(lambda: len(reader.events) == 2)
    client.post(f"/v1/videos/{others[1]}/cancel")
    eventually(lambda: len(reader.events) == 3)
    assert reader.events == [(None, "queued", {"place": n}) for n in (2, 1, 0)]
    player.let_go()
    assert reader.told()[-1][0] == "done"


def test_a_reader_that_comes_back_is_told_the_rest(client: Any, player: PicturePlayer) -> None:
    player.hold()
    job_id = begin(client)
    first = Reader(client, job_id)
    eventually(lambda: STEPS[-1] in [each[1:] for each in first.events])
    seen = next(number for number, *event in first.events if tuple(event) == STEPS[1])
    again = Reader(client, job_id, seen)
    player.let_go()
    assert again.told()[:-1] == [STEPS[2], FIRST, *FRAMES]
    assert [each for each in first.told() if each[0] == "step"] == STEPS


@pytest.mark.parametrize("last", ["what", "-1", "9" * 40, "²"])
def test_an_id_that_was_never_given_begins_at_the_first_or_is_refused(
    client: Any, last: str
) -> None:
    job_id = begin(client)
    until(client, job_id, "completed")
    headers = {"last-event-id": last.encode()}
    answer = client.get(f"/v1/videos/{job_id}/events", headers=headers)
    assert answer.status_code == (400 if len(last) > 32 else 200)


def test_of_a_finished_job_the_end_is_told_and_then_nothing(client: Any) -> None:
    job_id = begin(client)
    video = until(client, job_id, "completed")
    assert Reader(client, job_id).told() == [("done", video)]
    answer = client.get(f"/v1/videos/{job_id}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    # A browser comes again after any other answer.
    seen = client.get(f"/v1/videos/{job_id}/events", headers={"last-event-id": "end"})
    assert (seen.status_code, seen.content) == (204, b"")


@pytest.mark.parametrize("how", ["cancelled", "failed", "deleted"])
def test_an_end_without_a_video_is_told(client: Any, player: PicturePlayer, how: str) -> None:
    player.gate.clear()
    if how == "failed":
        player.fault = RuntimeError("the GPU has gone")
    else:
        begin(client, "before")
    job_id = begin(client)
    reader = Reader(client, job_id)
    eventually(lambda: reader.events)
    if how == "cancelled":
        client.post(f"/v1/videos/{job_id}/cancel").raise_for_status()
    elif how == "deleted":
        client.delete(f"/v1/videos/{job_id}").raise_for_status()
    name, data = reader.told()[-1]
    # What is deleted is cancelled first, and may be told of as that.
    assert name in {how, "cancelled" if how == "deleted" else how}
    assert data["id"] == job_id
    if how == "failed":
        assert data["error"]["message"] == "RuntimeError: the GPU has gone"


def test_a_silent_connection_gets_a_comment(
    client: Any, player: PicturePlayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_TICK", 0.01)
    monkeypatch.setattr(watching, "_KEEP_ALIVE", 2)
    player.gate.clear()
    reader = Reader(client, begin(client))
    eventually(lambda: len(reader.comments) > 1)
    assert set(reader.comments) == {": still here"}
    player.let_go()
    assert reader.told()[-1][0] == "done"


def test_a_server_that_ends_tells_its_readers(tmp_path: Path) -> None:
    player = PicturePlayer()
    with (
        listening(tmp_path / "videos", player, drain_seconds=0) as server,
        httpx2.Client(base_url=server.address, timeout=WAIT) as client,
    ):
        player.gate.clear()
        begin(client, "before")
        reader = Reader(client, begin(client))
        eventually(lambda: reader.events)
        server.state.service.channels.close("queued")
        name, video = reader.told()[-1]
        assert (name, video["status"]) == ("interrupted", "queued")
        # It has no id: a reader that comes again is told what the next server does.
        assert reader.events[-1][0] is None


def test_what_is_followed_is_of_its_owner_alone(tmp_path: Path) -> None:
    tokens = ("alpha-alpha-alpha", "beta-beta-beta-beta")
    ours, theirs = ({"authorization": f"Bearer {token}"} for token in tokens)
    with (
        listening(tmp_path / "videos", PicturePlayer(), tokens=tokens) as server,
        httpx2.Client(base_url=server.address, timeout=WAIT) as client,
    ):
        made = client.post("/v1/videos", json={"prompt": "a"}, headers=ours).json()
        for route in ("events", "stream"):
            address = f"/v1/videos/{made['id']}/{route}"
            assert client.get(address).status_code == 401
            assert client.get(address, headers=theirs).status_code == 404
            assert client.get(address, headers=ours).status_code == 200
