#!/usr/bin/env python3
"""A server for each of some GPUs, beside the same videos made without one: evidence.

    python3 scripts/serve_gpus.py BUNDLE -o benchmarks/h100_serve.json [--gpus 0,1] [--videos 4]

Makes videos by direct calls, then starts a server for each GPU (one named twice gets two servers),
has the first make the same videos, and then all of them at once. The content that a server sends
must be that of the direct call, byte for byte. A bundle without a text encoder is given made-up
embeddings of its prompts; where PyAV is missing, a content is the frames as they are. Ray is not
needed: a replica there is such a process.
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

from figure_sources import LIFTED, ROOT, VIDEO, sources
from record_machine import QUERY, ask_smi, commit

from fastwan.bundle import open_bundle
from fastwan.shapes import shape_text

Record = dict[str, Any]
_CHILD = Path(__file__).with_name("served_bundle.py")
_QUERY = f"index,{QUERY}"
_MADE_SECONDS = 300
_SHOWN = ("text", "text_kv", "step", "decode", "copy", "first_frame", "total", "write", "queue")


def prompt(number: int) -> dict[str, Any]:
    """A request of its own."""
    return {"prompt": f"a red fox in the snow, take {number}", "seed": number}


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


def served(url: str, requests: Sequence[Record]) -> list[Record]:
    """Timings and content of each video by one server, all asked for at once."""
    ids = [json.loads(ask(f"{url}/v1/videos", each))["id"] for each in requests]
    made = []
    for each in ids:
        while (video := json.loads(ask(f"{url}/v1/videos/{each}")))["status"] in (
            "queued", "in_progress",
        ):  # fmt: skip
            time.sleep(0.02)
        if video["status"] != "completed":
            raise SystemExit(f"{each}: {video['error']}")
        content = ask(f"{url}/v1/videos/{each}/content")
        made.append({"timings": video["timings"], "sha256": sha256(content).hexdigest()})
    return made


def stages(made: Sequence[Record]) -> dict[str, float]:
    """Median milliseconds of each stage; all steps are one."""
    found: dict[str, list[float]] = {}
    for each in made:
        for name, seconds in each["timings"].items():
            stage = "step" if name.startswith("step_") else name
            if stage in _SHOWN:
                found.setdefault(stage, []).append(seconds * 1e3)
    return {name: round(statistics.median(found[name]), 3) for name in _SHOWN if name in found}


def measured(requests: int, seconds: float, made: Sequence[Record]) -> Record:
    """A run as its record has it."""
    return {
        "videos": requests,
        "seconds": round(seconds, 3),
        "videos_a_second": round(requests / seconds, 4),
        "median_stage_ms": stages(made),
    }


def memory(pid: int) -> int:
    """Resident bytes of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) << 10


def compare(bundle: Path, device: str, gpus: Sequence[str], videos: int) -> Record:
    """Direct calls, one server, and all of them."""
    requests = [prompt(number) for number in range(videos)]
    alone = direct(bundle, device, gpus[0], requests)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        begin = time.monotonic()
        with ThreadPoolExecutor(len(gpus)) as pool:
            opened = [
                server(bundle, device, gpu, folder / str(index)) for index, gpu in enumerate(gpus)
            ]
            servers = list(pool.map(stack.enter_context, opened))
            warm = time.monotonic() - begin
            begin = time.monotonic()
            one = served(servers[0][0], requests)
            one_seconds = time.monotonic() - begin
            begin = time.monotonic()
            every = list(pool.map(lambda each: served(each[0], requests), servers))
            all_seconds = time.monotonic() - begin
        bytes_in_use = [memory(pid) for _, pid in servers]
    contents = [each["sha256"] for each in alone]
    equal = [[each["sha256"] for each in made] == contents for made in (one, *every)]
    together = [each for made in every for each in made]
    return {
        "content": alone[0]["content"],
        "gpus": list(gpus),
        "warm_seconds": round(warm, 2),
        "resident_bytes": bytes_in_use,
        "direct_unwatched_seconds": round(statistics.median(x["unwatched"] for x in alone), 4),
        "direct": measured(videos, sum(each["seconds"] for each in alone), alone),
        "one_server": measured(videos, one_seconds, one),
        "all_servers": measured(videos * len(gpus), all_seconds, together),
        "rate_of_all_to_one": round(len(gpus) * one_seconds / all_seconds, 3),
        "contents_identical": all(equal),
        "contents_sha256": contents,
        "passed": all(equal) and len(set(contents)) == videos,
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
    parser.add_argument("--videos", type=int, default=4, help="of each server")
    arguments = parser.parse_args()
    manifest = open_bundle(arguments.bundle).manifest
    compared = compare(
        arguments.bundle, arguments.device, arguments.gpus.split(","), arguments.videos
    )
    model = manifest.onnx.model
    item = {
        "sources": sources(ROOT, VIDEO if manifest.fusion == "none" else LIFTED),
        "bundle": {
            "model": model.name,
            "attention": manifest.attention,
            "fusion": manifest.fusion,
            "size": shape_text(model.shape),
            "components": list(manifest.components),
        },
        **compared,
    }
    record = {"machine": machine(arguments.device), "items": {"serve": item}}
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({**compared, "contents_sha256": len(compared["contents_sha256"])}, indent=1))
    return 0 if item["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
