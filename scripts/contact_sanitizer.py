"""The four tools of compute-sanitizer over the kernels: an item of first_contact.py.

A tool takes minutes and little of a GPU, so the four run side by side.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from figure_sources import ROOT, SANITIZED, sources

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
_SECONDS = 560


def run(tool: str) -> dict[str, Any]:
    """One tool over the kernels: seconds, tests or kernels that passed, errors that it counted.

    Raises:
        RuntimeError: it found something, a test failed, or none ran.
    """
    begin = time.monotonic()
    done = subprocess.run(
        ["bash", "scripts/sanitize_kernels.sh"],
        cwd=ROOT,
        env=os.environ | {"CHECKS": tool},
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    seconds = round(time.monotonic() - begin, 1)
    passed = re.search(r"(\d+) passed", done.stdout)
    counted = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)", done.stdout)
    if done.returncode != 0 or passed is None or not counted or set(counted) != {"0"}:
        last = (done.stdout + done.stderr).strip().splitlines()[-6:]
        raise RuntimeError(f"{tool}, exit {done.returncode}: {'; '.join(last)}")
    return {"seconds": seconds, "passed": int(passed.group(1)), "errors": 0}


def check() -> dict[str, Any]:
    """Every tool, and what was run."""
    with ThreadPoolExecutor(len(TOOLS)) as pool:
        found = list(pool.map(run, TOOLS))
    return {
        "side_by_side": True,
        "tools": dict(zip(TOOLS, found, strict=True)),
        "sources": sources(ROOT, SANITIZED),
    }
