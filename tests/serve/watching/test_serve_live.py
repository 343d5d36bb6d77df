"""A video as it is made: live, from its beginning, for any number of readers of any speed."""

from __future__ import annotations

import io
import threading
from typing import Any

import httpx2
import numpy as np
import pytest

from fastwan.runtime.fragments import FragmentedMp4
from fastwan.serve import live
from fastwan.serve.jobs import Asked
from testkit.fake_player import WAIT, until
from testkit.picture_player import SHAPES, Listening, PicturePlayer, eventually, picture

av = pytest.importorskip("av", reason="PyAV is not installed")

COUNT = SHAPES[0].num_frames


class Reader(threading.Thread):
    """Reads a job's stream on a thread of its own.

    Attributes:
        data: what came so far.
        error: what the connection ended with, where that was not the end of the body.
    """

    def __init__(self, client: httpx2.Client, job_id: str) -> None:
        super().__init__(daemon=True)
        self._address = f"{client.base_url}/v1/videos/{job_id}/stream"
        self.data = b""
        self.status = 0
        self.kind = ""
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            with httpx2.stream("GET", self._address, timeout=WAIT) as answer:
                self.status, self.kind = answer.status_code, answer.headers["content-type"]
                for part in answer.iter_raw():
                    self.data += part
        except Exception as error:
            self.error = error

    def whole(self) -> bytes:
        """All of it."""
        self.join(WAIT)
        assert (self.error, self.status) == (None, 200)
        return self.data


def begin(client: httpx2.Client, seed: int = 7) -> str:
    made = client.post("/v1/videos", json={"prompt": "a red fox", "seed": seed})
    return str(made.raise_for_status().json()["id"])


def watched(server: Listening, client: httpx2.Client, player: PicturePlayer) -> tuple[str, Reader]:
    """A job that makes no frame yet, and a reader that waits for one."""
    player.hold()
    job_id = begin(client)
    reader = Reader(client, job_id)
    server.until_watched(job_id)
    return job_id, reader


def decode(data: bytes) -> list[np.ndarray]:
    with av.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.fixture(scope="module")
def expected() -> bytes:
    """What an encoder of the same frames makes at once."""
    asked = Asked(
        model="fake", prompt="", seed=7, sampler="dmd", steps=3, height=96, width=160,
        num_frames=COUNT, fps=16,
    )  # fmt: skip
    with FragmentedMp4(96, 160) as encoder:
        parts = [encoder.write(picture(asked, index)) for index in range(COUNT)]
        return b"".join([*parts, encoder.finish()])


def test_frames_are_sent_before_the_last_is_made(
    server: Listening, client: Any, player: PicturePlayer, expected: bytes
) -> None:
    job_id, reader = watched(server, client, player)
    player.frames.release(5)
    # A frame leaves with the one behind it.
    eventually(lambda: reader.data.count(b"mdat") == 4)
    assert len(decode(reader.data)) == 4
    assert client.get(f"/v1/videos/{job_id}").json()["status"] == "in_progress"
    player.let_go()
    assert reader.whole() == expected
    assert reader.kind == 'video/mp4; codecs="avc1.64000a"'
    assert len(decode(reader.data)) == COUNT


def test_a_late_reader_begins_at_the_beginning(
    server: Listening, client: Any, player: PicturePlayer, expected: bytes
) -> None:
    job_id, early = watched(server, client, player)
    player.frames.release(6)
    eventually(lambda: early.data.count(b"mdat") == 5)
    late = Reader(client, job_id)
    eventually(lambda: late.data == early.data)
    player.let_go()
    assert early.whole() == late.whole() == expected


def test_a_finished_video_is_its_file(
    server: Listening, client: Any, player: PicturePlayer
) -> None:
    job_id, reader = watched(server, client, player)
    player.let_go()
    reader.whole()
    until(client, job_id, "completed")
    file = client.get(f"/v1/videos/{job_id}/content")
    again = client.get(f"/v1/videos/{job_id}/stream")
    assert again.content == file.content != reader.data
    assert again.headers["content-type"] == "video/mp4"
    part = client.get(f"/v1/videos/{job_id}/stream", headers={"range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, b"ftyp")


def test_the_file_is_the_same_whether_somebody_watched_or_not(
    server: Listening, client: Any, player: PicturePlayer
) -> None:
    alone = begin(client)
    until(client, alone, "completed")
    seen, reader = watched(server, client, player)
    player.let_go()
    reader.whole()
    until(client, seen, "completed")
    files = [client.get(f"/v1/videos/{job_id}/content").content for job_id in (alone, seen)]
    assert files[0] == files[1]
    assert b"moof" not in files[0]
    assert b"moof" in reader.data


def test_nothing_is_encoded_live_where_nobody_waits_for_the_first_frame(
    server: Listening, client: Any, player: PicturePlayer
) -> None:
    player.hold()
    job_id = begin(client)
    channel = server.state.service.channels.open(job_id)
    player.frames.release(1)
    eventually(lambda: channel.last("frames"))
    # Who comes now gets the file, as soon as it is there.
    reader = Reader(client, job_id)
    eventually(lambda: channel.is_watched)
    player.let_go()
    data = reader.whole()
    assert channel.last("chunk") is None
    assert data == client.get(f"/v1/videos/{job_id}/content").content


def test_a_reader_that_reads_nothing_holds_up_nobody(
    server: Listening, client: Any, player: PicturePlayer
) -> None:
    player.hold()
    job_id = begin(client)
    with httpx2.Client(base_url=server.address, timeout=WAIT) as other:
        request = other.build_request("GET", f"/v1/videos/{job_id}/stream")
        opened: list[httpx2.Response] = []
        opener = threading.Thread(target=lambda: opened.append(other.send(request, stream=True)))
        opener.start()
        server.until_watched(job_id)
        player.let_go()
        opener.join(WAIT)
        # Its answer lies unread while this video and the next are made.
        until(client, job_id, "completed")
        until(client, begin(client, seed=8), "completed")
        assert len(decode(opened[0].read())) == COUNT


def test_a_cancelled_video_ends_in_the_middle_of_the_body(
    server: Listening, client: Any, player: PicturePlayer
) -> None:
    job_id, reader = watched(server, client, player)
    player.frames.release(4)
    eventually(lambda: reader.data.count(b"mdat") == 3)
    client.post(f"/v1/videos/{job_id}/cancel").raise_for_status()
    reader.join(WAIT)
    assert isinstance(reader.error, httpx2.RemoteProtocolError)
    assert len(decode(reader.data)) >= 3
    eventually(lambda: server.state.watchers.now == 0)


def test_a_video_that_fails_before_its_first_frame_is_refused(
    server: Listening, client: Any, player: PicturePlayer
) -> None:
    player.gate.clear()
    job_id = begin(client)
    reader = Reader(client, job_id)
    server.until_watched(job_id)
    client.post(f"/v1/videos/{job_id}/cancel").raise_for_status()
    reader.join(WAIT)
    assert reader.status == 404
    assert b"the video is not there: cancelled" in reader.data


def test_a_live_encoder_that_fails_costs_the_watchers_and_not_the_video(
    server: Listening, client: Any, player: PicturePlayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(FragmentedMp4):
        def finish(self) -> bytes:
            raise ValueError("no more")

    monkeypatch.setattr(live, "FragmentedMp4", Broken)
    job_id, reader = watched(server, client, player)
    player.let_go()
    reader.join(WAIT)
    assert isinstance(reader.error, httpx2.RemoteProtocolError)
    until(client, job_id, "completed")
    assert len(decode(client.get(f"/v1/videos/{job_id}/content").content)) == COUNT


def test_readers_are_counted_and_the_last_too_many_is_refused(
    server: Listening, client: Any, player: PicturePlayer
) -> None:
    watchers = server.state.watchers
    watchers.most = 1
    job_id, reader = watched(server, client, player)
    for route in ("stream", "events"):
        refused = client.get(f"/v1/videos/{job_id}/{route}")
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "too_many_watchers"
        assert refused.headers["retry-after"] == "1"
    player.let_go()
    reader.whole()
    eventually(lambda: watchers.now == 0)
    assert client.get(f"/v1/videos/{job_id}/events").status_code == 200
