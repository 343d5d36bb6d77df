#!/usr/bin/env python3
"""Time this project's bundles beside FastVideo, TurboDiffusion and LightX2V on one GPU.

    python scripts/compare_peers.py --bundle BUNDLE --peers peers.json -o table.json

Each system runs in a process of its own, one after the other, at 832x480x81, with the steps it was
trained for: `--runs` videos (20) after `--warmup` (5) at the same shape. A row with its own decoder
and one with TAEHV; where a system cannot decode with TAEHV, TAEHV is timed alone and added. The
functions of each stage are timed in the process (scripts/peer_probe), between waits for the GPU.
What is not installed or fails is a gap with its reason, never a number. Writes the JSON and, beside
it, the same as Markdown. The peers file names what is installed:

    {"fastvideo-qad": {"folder": "FastVideo", "python": "fv/bin/python",
                       "model": "FastVideo/FastWan-QAD-1.3B", "taehv_checkpoint": "taew2_1.pth"},
     "taehv": {"python": "fv/bin/python", "checkpoint": "taew2_1.pth"}}

Exits 1 if nothing could be measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from peer_runs import Missing, Row, measure, taehv_alone
from peer_systems import SYSTEMS
from peer_table import markdown, ours, published, with_taehv

from fastwan.errors import FastWanError
from fastwan.quality.gpu_state import environment, gpu_state
from fastwan.strict_json import read_json

Peers = Mapping[str, Mapping[str, str]]


def peers_of(path: Path | None) -> Peers:
    """The peers file, with paths taken from its own folder.

    Raises:
        ValueError: an unknown system, or a value that is no text.
    """
    if path is None:
        return {}
    raw = read_json(path)
    if unknown := sorted(set(raw) - {*SYSTEMS, "taehv"}):
        raise ValueError(f"{path}: unknown system {unknown[0]!r}; one of {', '.join(SYSTEMS)}")
    for name, peer in raw.items():
        if not isinstance(peer, dict) or not all(isinstance(each, str) for each in peer.values()):
            raise ValueError(f"{path}: {name} is no object of texts")
    here = path.resolve().parent
    return {name: {key: _placed(here, value) for key, value in peer.items()}
            for name, peer in raw.items()}  # fmt: skip


def _placed(here: Path, value: str) -> str:
    """A value that names something beside the peers file, as a whole path; others as they are."""
    return str(here / value) if (here / value).exists() else value


def our_rows(bundles: list[str], warmup: int, runs: int) -> list[Row]:
    """A row for each bundle, by ``fastwan-export bench`` in a process of its own."""
    rows = []
    for bundle in bundles:
        done = subprocess.run(
            [sys.executable, "-m", "fastwan.cli", "bench", bundle, "--device", "cuda",
             "--runs", str(runs), "--warmup", str(warmup), "--json"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["nothing printed"])[-1]
            rows.append(Row("fastwan-export", f"fastwan-export, {bundle}", "taehv", 3, gap=said))
        else:
            rows.append(ours(json.loads(done.stdout), 3))
    return rows


def peer_rows(name: str, peers: Peers, warmup: int, runs: int, taehv: float | Missing) -> list[Row]:
    """The rows of a system: with its own decoder where it has one, and with TAEHV."""
    system, peer = SYSTEMS[name], peers.get(name)
    rows: list[Row] = []
    for decoder in ("own", "taehv"):
        if decoder == "own" and system.own is None:
            continue
        gap = Row(name, system.title, decoder, system.steps)
        before = gpu_state()
        try:
            if decoder == "taehv" and system.taehv is None:
                measured = rows[-1]
                if measured.gap:
                    raise Missing(measured.gap)
                if isinstance(taehv, Missing):
                    raise taehv
                rows.append(with_taehv(measured, taehv))
                continue
            row = measure(name, system, peer, decoder, warmup, runs)
            states = (before, gpu_state())
            kept = tuple(None if each is None else each.model_dump() for each in states)
            rows.append(replace(row, gpu_states=kept))
        except Missing as error:
            rows.append(replace(gap, gap=str(error)))
    return rows


def machine() -> dict[str, Any]:
    """GPU, driver and versions that the figures belong to."""
    try:
        asked = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, check=False,
        ).stdout.strip()  # fmt: skip
    except OSError:
        asked = ""
    name, _, driver = asked.partition(", ")
    return {"gpu": name, "driver": driver, **environment().model_dump()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--bundle", action="append", default=[], help="may be given several times")
    parser.add_argument("--peers", type=Path, help="JSON file of what is installed")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.runs < 1 or arguments.warmup < 0:
        parser.error("--runs is at least 1, --warmup at least 0")
    try:
        peers = peers_of(arguments.peers)
    except (ValueError, FastWanError) as error:
        parser.error(str(error))
    warmup, runs = arguments.warmup, arguments.runs
    taehv: float | Missing
    try:
        taehv = taehv_alone(peers.get("taehv"), warmup, runs)
    except Missing as error:
        taehv = error
    rows = our_rows(arguments.bundle, warmup, runs)
    for name in SYSTEMS:
        rows += peer_rows(name, peers, warmup, runs, taehv)
        print(f"{name}: {rows[-1].gap or 'measured'}", file=sys.stderr, flush=True)
    about = machine()
    record = {
        "kind": "measured",
        "machine": about,
        "warmup": warmup,
        "rows": [
            {**row.to_json(), "published": [vars(each) for each in published(row)]} for row in rows
        ],
    }
    arguments.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    arguments.output.with_suffix(".md").write_text(markdown(rows, about, warmup), encoding="utf-8")
    return int(all(row.gap for row in rows))


if __name__ == "__main__":
    sys.exit(main())
