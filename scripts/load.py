"""Loads a server with more requests than it can serve, and counts what became of each.

    python scripts/load.py BUNDLE [--requests 1000] [--times 2]

makes some videos with ``generate``, starts ``serve`` and measures how long it takes over one video
and how many it makes a second. Then it asks for that many times `--times`. A request that is
refused for want of room is sent again when the server says so. Every video is compared with the one
that ``generate`` made. Exit code 1: a job was lost, or a video was another one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from load_customers import Moment, Plan, Session, load
from load_prompts import PROMPTS, SEED, prompt
from locust.env import Environment

_URL = re.compile(r"on (http://\S+),")
_WARM_UPS = 3
_SETTLED = 60
"""Seconds of the load after which the memory has to stay."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--times", type=float, default=2.0, help="of the rate that it serves")
    parser.add_argument("--probes", type=int, default=20, help="videos that rates are measured by")
    parser.add_argument("-o", "--output", type=Path, help="report as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        digests = make_alone(arguments.bundle, arguments.device, folder)
        with server(arguments.bundle, arguments.device, folder / "served") as url:
            session = Session(url)
            with alone(arguments.bundle, arguments.device) as make:
                without, served = compare(make, session, arguments.probes)
            rate = session.videos_a_second(arguments.probes)
            plan = Plan(arguments.requests, digests)
            environment = load(url, plan, rate * arguments.times)
    report = {
        "alone_seconds": without,
        "served_seconds": served,
        "overhead_milliseconds": (served - without) * 1e3,
        "videos_a_second": rate,
        "asked_a_second": rate * arguments.times,
        **{name: getattr(plan, name) for name in ("requests", "refused", "done", "lost", "wrong")},
        "moments": [vars(moment) for moment in plan.moments],
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report, environment, plan.moments))
    return 1 if plan.lost or plan.wrong else 0


def make_alone(bundle: Path, device: str, folder: Path) -> dict[str, str]:
    """Hash of the video of each prompt, by ``generate``."""
    names = [prompt(number) for number in range(PROMPTS)]
    words = ["generate", str(bundle), *names, "--seed", str(SEED), "--device", device]
    subprocess.run(
        [sys.executable, "-m", "fastwan", "-q", *words, "-o", str(folder / "x.mp4")],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return {
        name: hashlib.sha256((folder / f"x_{index}.mp4").read_bytes()).hexdigest()
        for index, name in enumerate(names)
    }


@contextmanager
def alone(bundle: Path, device: str) -> Iterator[Callable[[], float]]:
    """Function that makes a video and its file without a server, and returns the seconds."""
    script = Path(__file__).with_name("load_alone.py")
    process = subprocess.Popen(
        [sys.executable, str(script), str(bundle), device],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def make() -> float:
        stdin.write("\n")
        stdin.flush()
        return float(stdout.readline())

    try:
        yield make
    finally:
        stdin.close()
        process.wait()


def compare(make: Callable[[], float], session: Session, count: int) -> tuple[float, float]:
    """Median seconds of a video without the server and by it, in turns."""
    usual = min(make() for _ in range(_WARM_UPS))
    pairs = [(make(), session.one(usual)) for _ in range(count)]
    without, served = zip(*pairs, strict=True)
    return statistics.median(without), statistics.median(served)


@contextmanager
def server(bundle: Path, device: str, folder: Path) -> Iterator[str]:
    """Address of a server that is ready."""
    words = ["serve", str(bundle), "--device", device, "--port", "0", "--folder", str(folder)]
    process = subprocess.Popen(
        [sys.executable, "-m", "fastwan", *words, "--client-share", "64"],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        match = _URL.search(process.stderr.readline())
        if match is None:
            raise SystemExit(f"no server: {process.stderr.read()}")
        Session(match[1]).wait_until_ready()
        yield match[1]
    finally:
        process.terminate()
        process.wait()


def table(report: dict[str, Any], environment: Environment, moments: list[Moment]) -> str:
    """What a reader wants to see, all of it measured."""
    rows = [
        "| | |", "|---|---|",
        f"| a video and its file without a server | {report['alone_seconds'] * 1e3:.1f} ms |",
        f"| the same from request to last byte | {report['served_seconds'] * 1e3:.1f} ms |",
        f"| what the server adds | {report['overhead_milliseconds']:.1f} ms |",
        f"| videos a second | {report['videos_a_second']:.2f} |",
        f"| requests a second that were sent | {report['asked_a_second']:.2f} |",
        f"| requests | {report['requests']:,} |",
        f"| refused for want of room, and sent again | {report['refused']:,} |",
        f"| done | {report['done']:,} |", f"| lost | {report['lost']:,} |",
        f"| wrong | {report['wrong']:,} |",
        "", "| request | count | p50 | p95 | errors |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for entry in sorted(environment.stats.entries.values(), key=lambda each: each.name):
        p50, p95 = (entry.get_response_time_percentile(p) for p in (0.5, 0.95))
        name = f"{entry.method} {entry.name}".strip()
        rows.append(
            f"| {name} | {entry.num_requests:,} | {p50:,.0f} ms | {p95:,.0f} ms "
            f"| {entry.num_failures:,} |"
        )
    rows += ["", "| second | RSS | waiting |", "|---|---|---|"]
    step = max(1, len(moments) // 10)
    rows += [
        f"| {m.seconds:.0f} | {m.rss / 1e6:.1f} MB | {m.waiting:.0f} |" for m in moments[::step]
    ]
    later = [m.rss for m in moments if m.seconds >= _SETTLED] or [m.rss for m in moments]
    rows.append(f"\nRSS after {_SETTLED} s: {later[0] / 1e6:.1f} to {max(later) / 1e6:.1f} MB")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
