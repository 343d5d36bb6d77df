"""A server that is killed at random points: no job that it accepted is lost or made wrongly."""

from __future__ import annotations

import hashlib
import random
import signal
import threading
import time
from functools import cache, partial
from pathlib import Path

import httpx2
import numpy as np
import pytest

from fastwan.runtime.video import open_output, parse_output
from testkit.fake_player import SHAPE
from testkit.server_process import WAIT, ServerProcess, started, until_done

START = 1.5
"""Seconds that a server takes to listen, about."""

PAUSE = 0.02
"""Seconds between two requests, so that the queue does not grow for ever."""


def digest_of(seed: int, folder: Path) -> str:
    """Hash of the video that the fake player makes of a seed."""
    path = folder / f"{seed}.mp4"
    with open_output(parse_output(path), height=SHAPE.height, width=SHAPE.width) as write:
        for _ in range(SHAPE.num_frames):
            write(np.full((SHAPE.height, SHAPE.width, 3), seed % 256, np.uint8))
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Customer:
    """Asks for one video after the other, each under a key, and asks again where no answer came.

    Attributes:
        accepted: ids of the jobs that it was promised, by key.
        pending: the key of a request that may or may not have been accepted.
    """

    def __init__(self) -> None:
        self.accepted: dict[int, str] = {}
        self.pending = 0

    def visit(self, server: ServerProcess) -> None:
        """Ask until the server is gone."""
        try:
            with server.client() as client:
                while True:
                    self.ask(client)
                    time.sleep(PAUSE)
        except (httpx2.TransportError, AssertionError):
            pass

    def ask(self, client: httpx2.Client) -> None:
        """Ask for the video of the next key; its seed is the key."""
        answer = client.post(
            "/v1/videos",
            json={"prompt": f"prompt {self.pending}", "seed": self.pending},
            headers={"idempotency-key": str(self.pending)},
        )
        assert answer.status_code == 200, answer.text
        self.accepted[self.pending] = answer.json()["id"]
        self.pending += 1


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_every_accepted_job_is_made_whenever_the_server_is_killed(
    tmp_path: Path, kills: int
) -> None:
    customer, moments = Customer(), random.Random(kills)
    words = ("-m", "testkit.fake_server", str(tmp_path / "videos"), "0.002")
    for index in range(kills):
        with started(*words) as server:
            visit = threading.Thread(target=customer.visit, args=[server])
            visit.start()
            if index % 5 == 4:  # while it takes up what the one before left
                time.sleep(moments.uniform(0, START))
            else:
                wanted = len(customer.accepted) + moments.randint(1, 20)
                while len(customer.accepted) < wanted:
                    time.sleep(moments.uniform(0, PAUSE))
            server.process.send_signal(signal.SIGKILL)
            visit.join()
    with started(*words) as server, server.client() as client:
        customer.ask(client)
        digest = cache(partial(digest_of, folder=tmp_path))
        for seed, job_id in customer.accepted.items():
            video = until_done(client, job_id)
            assert (video["status"], video["seed"]) == ("completed", seed)
            content = client.get(f"/v1/videos/{job_id}/content").content
            assert hashlib.sha256(content).hexdigest() == digest(seed % 256)
        assert len(customer.accepted) > kills
        assert kept(client) == set(customer.accepted.values())
    videos = tmp_path / "videos" / "videos"
    assert {file.stem for file in videos.glob("*.mp4")} == set(customer.accepted.values())


def test_a_second_signal_leaves_the_video_to_the_next_server(tmp_path: Path) -> None:
    folder = str(tmp_path / "videos")
    with started("-m", "testkit.fake_server", folder, "1000") as server:
        with server.client() as client:
            job_id = client.post("/v1/videos", json={"prompt": "a"}).json()["id"]
            while client.get(f"/v1/videos/{job_id}").json()["status"] != "in_progress":
                pass
            server.process.send_signal(signal.SIGTERM)
            while client.get("/ready").json()["status"] != "draining":
                pass
            assert client.get(f"/v1/videos/{job_id}").json()["status"] == "in_progress"
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(WAIT) == 0
    with started("-m", "testkit.fake_server", folder, "0") as server, server.client() as client:
        video = until_done(client, job_id)
    assert (video["status"], video["attempts"]) == ("completed", 1)


def kept(client: httpx2.Client) -> set[str]:
    """Ids of all jobs of a server."""
    found: set[str] = set()
    page = {"has_more": True, "last_id": None}
    while page["has_more"]:
        after = {"after": page["last_id"]} if page["last_id"] else {}
        page = client.get("/v1/videos", params={"limit": 100, **after}).json()
        found |= {video["id"] for video in page["data"]}
    return found
