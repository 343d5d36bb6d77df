#!/usr/bin/env python3
"""How many videos a second replicas on Ray make, and what memory they share.

    python3 scripts/ray_rates.py BUNDLE [--videos 40] [--replicas 1,2,1,2] [--idle 0]

Starts Ray on this machine, and on it the application once for each number of replicas. Memory is
that of the replicas' processes at the end: resident, and with shared pages divided among those that
share them. The share of the CPUs that all processes of the machine used meanwhile tells whether
there was room; `--idle` makes room: after each step a replica waits for so many seconds, as for a
device, and takes no CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray import serve

from fastwan.runtime.timings import Timings
from fastwan.serve.bundle_player import BundlePlayer
from fastwan.serve.jobs import Asked
from fastwan.serve.player import Player, Watch
from fastwan.serve.ray.application import build_over
from fastwan.serve.ray.deployments import BundleReplica
from fastwan.serve.ray.options import Limits, Options

_PORT = 8765
_POLL_SECONDS = 0.25
_STORE_BYTES = 200 << 20


class WaitingPlayer(BundlePlayer):
    """Waits after each step."""

    idle = 0.0

    def play(self, asked: Asked, watch: Watch) -> Timings:
        def on_step(done: int) -> None:
            time.sleep(self.idle)
            watch.on_step(done)

        return super().play(asked, replace(watch, on_step=on_step))


class WaitingReplica(BundleReplica):
    """A replica whose device leaves the CPUs alone for a while."""

    idle = 0.0

    def open(self, options: Options) -> Player:
        player = WaitingPlayer.open(options.bundle, options.device)
        player.idle = self.idle
        return player


def ask(path: str, body: dict[str, Any] | None = None) -> Any:
    """What the application answers; a body is posted."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{_PORT}{path}", data, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read())


def cpu_ticks() -> tuple[int, int]:
    """Busy and all ticks of the machine so far."""
    numbers = [int(each) for each in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(numbers) - numbers[3] - numbers[4], sum(numbers)


def memory() -> list[dict[str, int]]:
    """Resident and proportional bytes of each replica's process."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes() if folder.name.isdecimal() else b""
            if words.startswith(b"ray::ServeReplica:fastwan:Replica"):
                lines = (folder / "smaps_rollup").read_text().splitlines()[1:]
                fields = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines}
                found.append({"rss": fields["Rss"], "pss": fields["Pss"]})
        except OSError:  # it has ended
            continue
    return found


def measure(bundle: Path, replicas: int, videos: int, idle: float) -> dict[str, Any]:
    """Videos that are all asked for at once."""
    with TemporaryDirectory() as folder:
        options = Options(
            bundle=bundle.absolute(), folder=Path(folder) / "videos", device="cpu",
            replicas=replicas, limits=Limits(queue_size=2 * videos),
        )  # fmt: skip
        kind = type("WaitingReplica", (WaitingReplica,), {"idle": idle})
        serve.run(build_over(kind, options), name="fastwan")
        busy, ticks = cpu_ticks()
        begin = time.monotonic()
        jobs = [
            ask("/v1/videos", {"prompt": "a fox", "seed": seed})["id"] for seed in range(videos)
        ]
        made = [wait_for(job) for job in jobs]
        seconds = time.monotonic() - begin
        used = [now - before for now, before in zip(cpu_ticks(), (busy, ticks), strict=True)]
        result = {
            "replicas": replicas,
            "idle": idle,
            "videos_a_second": round(videos / seconds, 3),
            "median_total": sorted(each["timings"]["total"] for each in made)[videos // 2],
            "cpu_share": round(used[0] / used[1], 3),
            "memory": memory(),
        }
        serve.delete("fastwan")
    return result


def wait_for(job: str) -> Any:
    """A job once it is completed."""
    while (video := ask(f"/v1/videos/{job}"))["status"] != "completed":
        if video["status"] not in ("queued", "in_progress"):
            raise SystemExit(f"{job}: {video['error']}")
        time.sleep(_POLL_SECONDS)
    return video


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--videos", type=int, default=40)
    parser.add_argument("--replicas", default="1,2,1,2")
    parser.add_argument("--idle", type=float, default=0.0, help="seconds after a step")
    arguments = parser.parse_args()
    ray.init(
        num_cpus=os.cpu_count(), object_store_memory=_STORE_BYTES, include_dashboard=False,
        log_to_driver=False,
    )  # fmt: skip
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": _PORT})
        for replicas in arguments.replicas.split(","):
            result = measure(arguments.bundle, int(replicas), arguments.videos, arguments.idle)
            print(json.dumps(result), flush=True)
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
