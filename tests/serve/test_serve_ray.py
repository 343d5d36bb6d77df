"""The application on Ray itself: two replicas on the CPU, and the death of one."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest

from fastwan.runtime.generate import generate
from fastwan.serve.ray.options import Options

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")]

JOBS = 6
TRIES = 5
WAIT = 120.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def replica_pids() -> list[int]:
    """Processes of the replicas of this user's Ray."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                words = (folder / "cmdline").read_bytes()
            except OSError:  # it has ended
                continue
            if words.startswith(b"ray::ServeReplica:fastwan:Replica"):
                found.append(int(folder.name))
    return found


@pytest.fixture(scope="module")
def client(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of an application with two replicas."""
    ray = pytest.importorskip("ray", reason="needs the extra serve-ray")
    from ray import serve

    from fastwan.serve.ray.application import build

    port = free_port()
    ray.init(num_cpus=2, object_store_memory=200 << 20, include_dashboard=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        folder = tmp_path_factory.mktemp("ray") / "videos"
        serve.run(
            build(Options(bundle=tiny_bundle, folder=folder, device="cpu", replicas=2)),
            name="fastwan",
        )
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT) as client:
            yield client
        serve.shutdown()
    finally:
        ray.shutdown()


def ask(client: httpx.Client, seed: int) -> str:
    return str(client.post("/v1/videos", json={"prompt": "a fox", "seed": seed}).json()["id"])


def done(client: httpx.Client, job: str) -> dict[str, object]:
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        video = dict(client.get(f"/v1/videos/{job}").json())
        if video["status"] not in ("queued", "in_progress"):
            return video
        time.sleep(0.05)
    raise AssertionError(f"{job} is {video['status']}")


def test_a_job_whose_replica_is_killed_is_run_again(
    client: httpx.Client, tiny_bundle: Path, tmp_path: Path
) -> None:
    """A kill may fall between two videos, so there are several."""
    alone = tmp_path / "alone.mp4"
    generate(tiny_bundle, "a fox", alone, seed=5, device="cpu")
    for _ in range(TRIES):
        jobs = [ask(client, 5) for _ in range(JOBS)]
        while client.get(f"/v1/videos/{jobs[0]}").json()["status"] == "queued":
            time.sleep(0.005)
        os.kill(replica_pids()[0], signal.SIGKILL)
        videos = [done(client, job) for job in jobs]
        assert [video["status"] for video in videos] == ["completed"] * JOBS
        for job in jobs:
            assert client.get(f"/v1/videos/{job}/content").content == alone.read_bytes()
        if max(int(str(video["attempts"])) for video in videos) > 1:
            break
    else:
        raise AssertionError("no kill hit a video")
    end = time.monotonic() + WAIT
    while len(replica_pids()) < 2 and time.monotonic() < end:
        time.sleep(0.2)
    assert len(replica_pids()) == 2
