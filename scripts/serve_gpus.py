#!/usr/bin/env python3
"""A server for each of some GPUs, beside the same videos made without one: evidence.

    python3 scripts/serve_gpus.py BUNDLE -o benchmarks/h100_serve.json [--gpus 0,1] [--videos 8]

Makes videos by direct calls, then starts a server for each GPU (one named twice gets two servers),
has the first make a third of them one after the other and a third all asked for at once, and all
servers the rest. The content that a server sends must be that of the direct call, byte for byte.
Direct calls make each video again, now with a known prompt, as a graph a step and as one graph.

A bundle without a text encoder is given made-up embeddings of its prompts; where PyAV is missing, a
content is a digest of each frame. Ray is not needed: a replica there is such a process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from record_machine import QUERY, ask_smi, commit, of_bundle
from serve_table import table

from fastwan.bundle import open_bundle

Record = dict[str, Any]
_CHILD = Path(__file__).with_name("served_bundle.py")
_QUERY = f"index,{QUERY}"
_MADE_SECONDS = 300
_IN_TURN = ("load", "text", "noise", "text_kv", "step", "decode")
"""Stages of a video that is looked into; what is left of ``total`` is ``rest``."""

_SHOWN = (
    "text", "noise", "text_kv", "step", "decode", "copy", "video", "rest", "first_frame", "total",
    "write", "queue",
)  # fmt: skip


def prompts(count: int, which: str) -> list[Record]:
    """Requests that nobody else makes: no prompt of theirs is known."""
    text = "a red fox in the snow"
    return [{"prompt": f"{text}, {which} take {n}", "seed": n} for n in range(count)]


def child(device: str, gpu: str, *words: str) -> subprocess.Popen[str]:
    """A process that opens the bundle on one GPU, and tells what it does line by line."""
    environment = dict(os.environ)
    if device != "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    command = [sys.executable, str(_CHILD), "--device", device, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def told(process: subprocess.Popen[str]) -> Record:
    """The next line of a child.

    Raises:
        SystemExit: it ended.
    """
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{' '.join(map(str, process.args))} ended early")  # type: ignore[arg-type]
    return dict(json.loads(line))


def ask(url: str, body: Record | None = None) -> bytes:
    """What a server answers; a body is posted."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=_MADE_SECONDS) as answer:
        return bytes(answer.read())


def direct(bundle: Path, device: str, gpu: str, requests: Sequence[Record]) -> list[Record]:
    """Timings and content of each video by direct calls."""
    process = child(device, gpu, "direct", str(bundle), json.dumps(requests))
    made = [told(process) for _ in requests]
    if process.wait():
        raise SystemExit("the direct calls failed")
    return made


@contextmanager
def server(bundle: Path, device: str, gpu: str, folder: Path) -> Iterator[tuple[str, int]]:
    """Address and process of a server that is warm."""
    process = child(device, gpu, "serve", str(bundle), str(folder))
    try:
        url = f"http://127.0.0.1:{told(process)['port']}"
        while json.loads(ask(f"{url}/health"))["status"] == "starting":
            time.sleep(0.1)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait()


def one_by_one(url: str, requests: Sequence[Record]) -> list[Record]:
    """Each video by one server, the next one asked for when the file of the last is there."""
    return [made for each in requests for made in at_once(url, [each])]


def at_once(url: str, requests: Sequence[Record]) -> list[Record]:
    """Timings, content and seconds until it is there of each video, all asked for at once.

    The client is told when a video is there, and asks for nothing meanwhile.
    """
    begin = time.monotonic()
    videos = [
        f"{url}/v1/videos/{json.loads(ask(f'{url}/v1/videos', each))['id']}" for each in requests
    ]
    made = []
    for each in videos:
        ask(f"{each}/events")
        content = ask(f"{each}/content")
        seconds = time.monotonic() - begin
        timings = json.loads(ask(each))["timings"]
        made.append({"seconds": seconds, "timings": timings, "sha256": sha256(content).hexdigest()})
    return made


def stages(timings: Sequence[dict[str, float]]) -> dict[str, float]:
    """Median milliseconds of each stage; all steps are one, of which each counts.

    ``rest`` is what the host does between the stages of a video that is looked into.
    """
    found: dict[str, list[float]] = {}
    for each in timings:
        rest = each["total"]
        for name, seconds in each.items():
            stage = "step" if name.startswith("step_") else name
            if stage in _IN_TURN:
                rest -= seconds
            found.setdefault(stage, []).append(seconds * 1e3)
        if "video" not in each:
            found.setdefault("rest", []).append(rest * 1e3)
    return {name: round(statistics.median(found[name]), 3) for name in _SHOWN if name in found}


def measured(requests: int, seconds: float, made: Sequence[Record]) -> Record:
    """A run as its record has it."""
    return {
        "videos": requests,
        "seconds": round(seconds, 3),
        "videos_a_second": round(requests / seconds, 4),
        "median_stage_ms": stages([each["timings"] for each in made]),
    }


def in_turn(made: Sequence[Record]) -> Record:
    """Likewise of videos that were made one after the other, each with its file."""
    seconds = [each["seconds"] for each in made]
    median = round(statistics.median(seconds) * 1e3, 3)
    return {**measured(len(made), sum(seconds), made), "median_ms_with_file": median}


def memory(pid: int) -> int:
    """Resident bytes of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) << 10


def compare(bundle: Path, device: str, gpus: Sequence[str], videos: int) -> Record:
    """Direct calls, one server, and all of them."""
    sets = [prompts(videos, which) for which in ("first", "second", "third")]
    alone = direct(bundle, device, gpus[0], [request for each in sets for request in each])
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        begin = time.monotonic()
        with ThreadPoolExecutor(len(gpus)) as pool:
            opened = [
                server(bundle, device, gpu, folder / str(index)) for index, gpu in enumerate(gpus)
            ]
            servers = list(pool.map(stack.enter_context, opened))
            warm = time.monotonic() - begin
            turns = one_by_one(servers[0][0], sets[0])
            begin = time.monotonic()
            one = at_once(servers[0][0], sets[1])
            one_seconds = time.monotonic() - begin
            begin = time.monotonic()
            every = list(pool.map(lambda each: at_once(each[0], sets[2]), servers))
            all_seconds = time.monotonic() - begin
        bytes_in_use = [memory(pid) for _, pid in servers]
    contents = [each["sha256"] for each in alone]
    found = [[*turns, *one, *made] for made in every]
    equal = all([each["sha256"] for each in made] == contents for made in found)
    together = [each for made in every for each in made]
    by_call, by_server = in_turn(alone), in_turn(turns)
    medians = [
        (each["median_stage_ms"]["total"], each["median_ms_with_file"])
        for each in (by_server, by_call)
    ]
    (served, with_file), (called, written) = medians
    return {
        "content": alone[0]["content"],
        "gpus": list(gpus),
        "warm_seconds": round(warm, 2),
        "resident_bytes": bytes_in_use,
        "known_prompt": {
            how: stages([each[how] for each in alone]) for how in ("a_graph_a_step", "one_graph")
        },
        "direct": by_call,
        "one_by_one": by_server,
        "server_adds_ms": {
            "to_a_video": round(served - called, 3),
            "to_a_video_and_its_file": round(with_file - written, 3),
        },
        "one_server": measured(videos, one_seconds, one),
        "all_servers": measured(videos * len(gpus), all_seconds, together),
        "rate_of_all_to_one": round(len(gpus) * one_seconds / all_seconds, 3),
        "contents_identical": equal,
        "contents_sha256": contents,
        "passed": equal and len(set(contents)) == len(contents),
    }


def machine(device: str) -> Record:
    """Where the figures are from."""
    found: Record = {"commit": commit(), "kind": device, "cpus": os.cpu_count()}
    if device != "cpu":
        said = ask_smi(_QUERY, gpu=None)
        found["nvidia_smi"] = {"query": _QUERY, "value": said.splitlines()}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--device", default="emulated", choices=("emulated", "cuda", "cpu"))
    parser.add_argument("--gpus", default="0,1", help="numbers, one a server")
    parser.add_argument("--videos", type=int, default=8, help="of each server at a time")
    arguments = parser.parse_args()
    manifest = open_bundle(arguments.bundle).manifest
    compared = compare(
        arguments.bundle, arguments.device, arguments.gpus.split(","), arguments.videos
    )
    item = {**of_bundle(manifest), **compared}
    record = {"machine": machine(arguments.device), "items": {"serve": item}}
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    print("\n".join(table(compared)))
    return 0 if item["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
