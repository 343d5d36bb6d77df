#!/usr/bin/env python3
"""`gate` and `compare` on a Hopper GPU with Blackwell's numbers: evidence for benchmarks/.

    python3 scripts/emulated_gate.py BUNDLE -o benchmarks/h100_gate.json [--beside OTHER ...]

Makes a baseline of BUNDLE with `gate --device emulated`, holds the unchanged bundle against it
--runs times, each in a process of its own, and then twice with a delay behind one denoising step: a
short one that has to pass, and a longer one that has to be caught by the stage `times`, in that
step alone. With the same device BUNDLE is then compared with itself, where nothing may differ, and
with each OTHER, a bundle of the same size. BUNDLE has all three components; a step of a few
milliseconds or more tells a tenth from noise, as of the tiny checkpoint with --shape 832x480x33.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from figure_sources import GATE, ROOT, sources
from record_machine import emulating_machine

from fastwan.bundle import Bundle, open_bundle
from fastwan.quality.findings import GateReport
from fastwan.quality.gate.run import gate
from fastwan.runtime.device import session
from fastwan.runtime.device.null import NullDevice
from fastwan.runtime.device.opening import Opened, open_for
from fastwan.runtime.device.session import Platform
from fastwan.runtime.recording.operations import LaunchContext, Operation
from fastwan.runtime.recording.record import Recording
from fastwan.schema import BundleFacts

Record = dict[str, Any]
DEVICE = "emulated"
STEP = "step_1"
PASSES, CAUGHT = 0.02, 0.12
"""Delays as shares of the step: within the limit of 5 %, and beyond it."""
HELD = ("static", "schedule", "predicted", "times")
MAX_PAGE = 3_000_000
SPIN = 50_000_000
"""Clocks of the delay that the clock is measured by."""


def cli(*words: str) -> tuple[int, Record, float]:
    """Run a command with --json; its exit code, report and seconds."""
    begin = time.monotonic()
    command = [sys.executable, "-m", "fastwan.cli", *words, "--json", "-q"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if not done.stdout:
        raise RuntimeError(f"{words[0]}: {done.stderr.strip()[-600:]}")
    return done.returncode, json.loads(done.stdout), round(time.monotonic() - begin, 1)


def figures(report: Record) -> dict[str, float]:
    """Measured figures of a gate by check; the shares of the spread are left out."""
    return {
        each["check"]: each["value"]
        for each in report["findings"]
        if each["stage"] == "times" and each["unit"] and each["value"] is not None
    }


def failing(findings: Collection[Record]) -> dict[str, list[str]]:
    """Checks that failed, by stage."""
    found: dict[str, list[str]] = {}
    for each in findings:
        if each["failed"]:
            found.setdefault(each["stage"], []).append(each["check"])
    return found


def pages(folder: Path) -> Record:
    """Sizes of a report's files."""
    names = ("index.html", "summary.md", "junit.xml", "report.json")
    return {name: (folder / name).stat().st_size for name in names}


@dataclass(kw_only=True, eq=False)
class Delay(Operation):
    """A kernel that does nothing for some clocks."""

    clocks: int

    def enqueue(self, context: LaunchContext, stream: int) -> None:
        with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
            torch.cuda._sleep(self.clocks)


def clocks_of(milliseconds: float) -> int:
    """Clocks of a delay."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(SPIN)
    begin.record()
    torch.cuda._sleep(SPIN)
    end.record()
    end.synchronize()
    return round(SPIN * milliseconds / begin.elapsed_time(end))


@contextmanager
def slower(step: str, clocks: int) -> Iterator[None]:
    """Let every session on the GPU play a delay at the end of a step."""

    def opened(
        platform: Platform,
        bundle: Bundle,
        recording: Recording,
        fallbacks: Collection[str] | None = None,
    ) -> Opened:
        made = open_for(platform, bundle, recording, fallbacks)
        if not isinstance(platform.device, NullDevice):
            (stage,) = (each for each in made.recording.stages if each.name == step)
            stage.operations.insert(len(stage.operations) - 1, Delay(clocks=clocks))
        return made

    before = session.open_for
    session.open_for = opened
    try:
        yield
    finally:
        session.open_for = before


def planted(bundle: Path, baseline: Path, share: float, runs: int) -> Record:
    """The gate of a bundle one of whose steps is slower by a share."""
    before = json.loads(baseline.read_text())["stages"]["times"][STEP]
    delay = share * before
    with slower(STEP, clocks_of(delay)):
        report: GateReport = gate(bundle, baseline, stages=HELD, device=DEVICE, runs=runs)
    told = report.model_dump(mode="json")
    return {
        "step": STEP,
        "share": share,
        "delay_ms": round(delay, 4),
        "before_ms": before,
        "after_ms": figures(told).get(STEP),
        "exit_code": report.exit_code,
        "failing": failing(told["findings"]),
    }


def gated(bundle: Path, folder: Path, count: int, runs: int) -> Record:
    """A baseline, unchanged runs, and planted delays."""
    baseline, history = folder / "baseline.json", folder / "history.jsonl"
    words = ("gate", str(bundle), "--against", str(baseline), "--device", DEVICE)
    words = (*words, "--runs", str(runs))
    code, made, seconds = cli(*words, "--update-baseline")
    kept = json.loads(baseline.read_text())
    unchanged = []
    for index in range(count):
        last = index == count - 1  # with everything, as a nightly job has it
        more = ["--report", str(folder / "gate")] if last else ["--stage", ",".join(HELD)]
        exit_code, report, took = cli(*words, "--history", str(history), *more)
        each = {"exit_code": exit_code, "failing": failing(report["findings"]), "seconds": took}
        unchanged.append({**each, "figures": figures(report)})
        print("gate", json.dumps(unchanged[-1]), flush=True)
    small, large = (planted(bundle, baseline, share, runs) for share in (PASSES, CAUGHT))
    record = {
        "sources": sources(ROOT, GATE),
        "bundle": BundleFacts.of(open_bundle(bundle)).model_dump(mode="json", exclude={"path"}),
        "baseline": {"exit_code": code, "failing": failing(made["findings"]), "seconds": seconds},
        "cohort": {name: kept[name] for name in ("gpu", "clocks")},
        "baseline_figures": kept["stages"]["times"],
        "checks_of_verify": len(kept["checks"]),
        "unchanged": unchanged,
        "false_alarms": sum(each["exit_code"] != 0 for each in unchanged),
        "largest_change": largest_change(kept["stages"]["times"], unchanged),
        "planted": [small, large],
        "report_bytes": pages(folder / "gate"),
    }
    record["passed"] = bool(
        code == 0
        and record["false_alarms"] == 0
        and (small["exit_code"], small["failing"]) == (0, {})
        and (large["exit_code"], large["failing"]) == (5, {"times": [STEP]})
        and record["report_bytes"]["index.html"] < MAX_PAGE
    )
    return record


def largest_change(baseline: Record, unchanged: Sequence[Record]) -> dict[str, float]:
    """By figure, the largest share by which an unchanged run was above the baseline."""
    return {
        name: round(max(each["figures"].get(name, 0) for each in unchanged) / value - 1, 4)
        for name, value in baseline.items()
    }


def compared(a: Path, b: Path, folder: Path) -> Record:
    """Two bundles step by step and block by block; the same bundle twice may not differ."""
    words = ["--device", DEVICE, "--by-block", "--report", str(folder)]
    words += ["--limit", "0"] if a == b else []
    code, report, seconds = cli("compare", str(a), str(b), *words)
    numeric = report["numeric"]
    record = {
        "sources": sources(ROOT, GATE),
        "a": {name: report["a"][name] for name in ("recipe", "attention", "fusion")},
        "b": {name: report["b"][name] for name in ("recipe", "attention", "fusion")},
        "exit_code": code,
        "seconds": seconds,
        "sampler": numeric["sampler"],
        "shape": numeric["shape"],
        "velocity": [each["velocity"] for each in numeric["steps"]],
        "drift": [each["drift"] for each in numeric["steps"]],
        "blocks": [[each["drift"], each["own"]] for each in numeric["blocks"]],
        "first_block": numeric["first_block"],
        "frames": numeric["frames"],
        "report_bytes": pages(folder),
    }
    steps = record["velocity"] + record["drift"]
    alike = all(each == 0 for each in steps) if a == b else all(0 < each < 1 for each in steps)
    record["passed"] = bool(
        code == 0
        and steps
        and record["frames"]
        and alike
        and record["report_bytes"]["index.html"] < MAX_PAGE
    )
    return record


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--beside", type=Path, action="append", default=[])
    parser.add_argument("--runs", type=int, default=10, help="of the unchanged bundle")
    parser.add_argument("--videos", type=int, default=15, help="timed in each run")
    parser.add_argument("--reports", type=Path, help="folder that keeps the reports")
    arguments = parser.parse_args()
    bundle, *others = (each.resolve() for each in (arguments.bundle, *arguments.beside))
    items: Record = {}
    record = {"machine": emulating_machine(), "items": items}
    with TemporaryDirectory() as temporary:
        folder = (arguments.reports or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        work: dict[str, Callable[[], Record]] = {
            "gate": partial(gated, bundle, folder, arguments.runs, arguments.videos)
        }
        for other in (bundle, *others):
            name = f"compare_{'itself' if other == bundle else other.name}"
            work[name] = partial(compared, bundle, other, folder / name)
        for name, run in work.items():
            try:
                items[name] = run()
            except Exception as error:  # one item must not keep the others from being measured
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:800]
                items[name] = {"passed": False, "error": reason}
            print(name, json.dumps(items[name]), flush=True)
            arguments.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0 if all(item["passed"] for item in items.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
