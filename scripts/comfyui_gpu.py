#!/usr/bin/env python3
"""The nodes in a real ComfyUI on a GPU, beside the same videos of `generate`: evidence.

    python3 scripts/comfyui_gpu.py BUNDLE COMFYUI -o benchmarks/h100_comfyui.json
        [--device emulated] [--option=--disable-cuda-malloc]

Makes videos with `generate`, then starts the ComfyUI of the folder COMFYUI with this Python, which
needs its requirements, and sends it the workflow that the nodes ship: videos of the same prompts
and seeds, whose pixels must be those of `generate`, two of them queued, one that is stopped, one
that fails, and ``POST /free``. A second ComfyUI is told that it has no memory left, so that two
bundles of one graph take turns. --option is handed to ComfyUI. With --device cpu it runs there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comfyui_prompts import (
    FRAMES,
    LOAD,
    MAKE,
    PROMPTS,
    SEEDS,
    Graph,
    Hashes,
    frames_sha256,
    graph,
    played,
    refused,
    stopped,
)
from record_machine import ask_smi, commit, emulating_machine, of_bundle

from fastwan.bundle import open_bundle
from fastwan.comfyui.install import install
from fastwan.runtime.recording.memory_plan import bundle_memory
from testkit.comfyui_server import Server, running

Record = dict[str, Any]

_RUNS = 3
_SAID = re.compile("(?:Device: |Total VRAM|Set vram state|DynamicVRAM|pytorch version).*")
"""Lines of ComfyUI's log that tell how it uses the GPU."""
_FREED_SECONDS = 20


def references(bundle: Path, device: str, folder: Path) -> tuple[Hashes, list[float]]:
    """SHA-256 of the frames by prompt and seed, and seconds of each video, all of `generate`."""
    folder.mkdir(parents=True)
    hashes, seconds = {}, []
    for seed in SEEDS:
        command = [sys.executable, "-m", "fastwan.cli", "generate", str(bundle), *PROMPTS]
        command += ["--device", device, "--seed", str(seed), "-o", str(folder / f"{seed}.mp4")]
        command += ["--warmup", "1", "--repeat", str(_RUNS), "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        for video in json.loads(done.stdout)["videos"]:
            hashes[video["prompt"], video["seed"]] = video["frames_sha256"]
            seconds += [run["total"] - run["load"] for run in video["runs"]]
    return hashes, seconds


def used_bytes(device: str) -> int:
    """Memory in use on the GPU, by every process."""
    return 0 if device == "cpu" else int(ask_smi("memory.used").split()[0]) << 20


def loads(server: Server) -> int:
    """Times that ComfyUI has loaded a bundle."""
    return server.log.count("Requested to load FastWanBundle")


def free(server: Server, device: str, planned: int, *, whole: bool) -> Record:
    """Ask for the memory; what was in use before and after.

    Args:
        whole: have what ComfyUI keeps of nodes' results forgotten, too.
    """
    before = used_bytes(device)
    server.free(results=whole)
    end = time.monotonic() + _FREED_SECONDS
    while used_bytes(device) > before - planned and time.monotonic() < end:
        time.sleep(0.2)
    time.sleep(1)
    return {"results_forgotten": whole, "before_bytes": before, "after_bytes": used_bytes(device)}


def in_roomy(server: Server, device: str, planned: int, expected: Hashes) -> Record:
    """Everything that one bundle does in a ComfyUI with the GPU to itself."""
    idle, (seed, other) = used_bytes(device), SEEDS
    first = played(server, graph("a", device), expected)
    again = [
        played(server, graph("a", device, *each), expected)
        for each in [(PROMPTS[0], other), (PROMPTS[1], seed), (PROMPTS[2], seed)]
    ]
    stop = stopped(server, "a", device)
    two = [server.queue(graph("a", device, each, other)) for each in PROMPTS[1:3]]
    queued = [frames_sha256(server, server.wait(each)) for each in two]
    error = refused(server, "a", device)
    memory, after, counts = [], [], [loads(server)]
    for whole, take in ((False, (PROMPTS[3], seed)), (True, (PROMPTS[3], other))):
        memory.append(free(server, device, planned, whole=whole))
        after.append(played(server, graph("a", device, *take), expected))
        counts.append(loads(server))
    memory.append(free(server, device, planned, whole=True))
    return {
        "first_prompt_seconds": round(first["prompt"], 4),
        "node_seconds": [round(each["node"], 4) for each in again],
        "prompt_seconds": [round(each["prompt"], 4) for each in again],
        "picture_seconds": [round(each, 4) for each in again[-1]["pictures"]],
        "pixels_equal": [each["equal"] for each in (first, *again, *after)],
        "queued_equal": queued == [expected[each, other] for each in PROMPTS[1:3]],
        "stop": stop,
        "error": error,
        "memory": {"planned_bytes": planned, "idle_bytes": idle, "unloaded": memory},
        "prompt_after_unload_seconds": [round(each["prompt"], 4) for each in after],
        "loads": counts,
    }


def in_tight(server: Server, device: str, expected: Hashes) -> Record:
    """Two bundles of one graph, twice, where ComfyUI believes that there is no memory left."""
    equal = []
    for prompts in (PROMPTS[:2], PROMPTS[2:]):
        nodes: Graph = {}
        for name, prompt in zip("ab", prompts, strict=True):
            own = graph(name, device, prompt)
            own[MAKE]["inputs"]["bundle"] = [name + LOAD, 0]
            own[FRAMES]["inputs"]["images"] = [name + MAKE, 0]
            nodes |= {name + node: own[node] for node in (LOAD, MAKE, FRAMES)}
        history = server.play(nodes)
        for name, prompt in zip("ab", prompts, strict=True):
            right = expected[prompt, SEEDS[0]]
            equal.append(frames_sha256(server, history, name + FRAMES) == right)
    return {"pixels_equal": equal, "used_bytes": used_bytes(device), "loads": loads(server)}


def comfyui_base(base: Path, bundle: Path) -> Path:
    """A ComfyUI's folder of models and nodes; the bundle lies there twice."""
    models = base / "models" / "fastwan"
    models.mkdir(parents=True)
    (base / "custom_nodes").mkdir()
    for name in ("a", "b"):
        (models / name).symlink_to(bundle.resolve())
    install(base)
    return base


def compare(
    bundle: Path, comfyui: Path, device: str, options: Sequence[str], folder: Path
) -> Record:
    """`generate`, a ComfyUI with the GPU to itself, and one without memory.

    Args:
        folder: an empty one for what they write.
    """
    planned = 0 if device == "cpu" else bundle_memory(open_bundle(bundle)).total
    options = [*options, *(["--cpu"] if device == "cpu" else [])]
    expected, seconds = references(bundle, device, folder / "generated")
    with running(
        comfyui_base(folder / "roomy", bundle), comfyui, sys.executable, options
    ) as server:
        stats = json.loads(server.get("system_stats"))
        roomy = in_roomy(server, device, planned, expected)
        said = [match[0] for match in _SAID.finditer(server.log)]
    reserved = f"--reserve-vram={stats['devices'][0]['vram_total'] / 2**30:.1f}"
    base = comfyui_base(folder / "tight", bundle)
    with running(base, comfyui, sys.executable, [*options, reserved]) as server:
        tight = in_tight(server, device, expected)
    names = [each.partition("=")[0] for each in options]  # values may be paths of a machine
    return {
        "comfyui": {"version": stats["system"]["comfyui_version"], "options": names, "log": said},
        "generate_seconds": [round(each, 4) for each in seconds],
        "median_generate_seconds": round(statistics.median(seconds), 4),
        "median_node_seconds": round(statistics.median(roomy["node_seconds"]), 4),
        "roomy": roomy,
        "tight": tight,
        "passed": passed(roomy, tight, device),
    }


def passed(roomy: Record, tight: Record, device: str) -> bool:
    """Whether everything was as it must be; times are not looked at."""
    planned = roomy["memory"]["planned_bytes"]
    given_back = [
        each["before_bytes"] - each["after_bytes"] >= planned
        for each in roomy["memory"]["unloaded"]
    ]
    equal = [*roomy["pixels_equal"], roomy["queued_equal"], *tight["pixels_equal"]]
    return (
        all([*equal, *given_back])
        and roomy["stop"]["videos_made"] < roomy["stop"]["videos_queued"]
        and "width 16 was asked for" in roomy["error"]
        and roomy["loads"] == [1, 2, 3]
        # The CPU takes none of that memory; a GPU has room for one at a time, in either order.
        and (tight["loads"] == 2 if device == "cpu" else tight["loads"] in (3, 4))
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("comfyui", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--device", default="emulated", choices=("emulated", "cuda", "cpu"))
    parser.add_argument("--folder", type=Path, help="new one, to keep logs and videos in")
    parser.add_argument("--option", action="append", default=[], help="of ComfyUI")
    arguments = parser.parse_args()
    manifest = open_bundle(arguments.bundle).manifest
    with tempfile.TemporaryDirectory() as temporary:
        compared = compare(
            arguments.bundle,
            arguments.comfyui,
            arguments.device,
            arguments.option,
            arguments.folder or Path(temporary),
        )
    item = {**of_bundle(manifest), **compared}
    on_cpu = {"commit": commit(), "kind": "cpu", "cpus": os.cpu_count()}
    machine = on_cpu if arguments.device == "cpu" else emulating_machine()
    record = {"machine": machine, "items": {"comfyui": item}}
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(compared, indent=1))
    return 0 if item["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
