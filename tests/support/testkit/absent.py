"""A process in which packages are absent, as in an install without their extra."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastwan.install import EXTRAS

_BEGIN = """
import json, sys

absent = set(json.loads(sys.argv.pop(1)))

class Absent:
    def find_spec(self, module, path=None, target=None):
        if module.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)

sys.meta_path.insert(0, Absent())
"""

_TRANSITIVE = ("scipy", "diffusers", "transformers", "requests", "sympy", "networkx")
"""Packages that only those of extras bring."""


def absent_without(*extras: str) -> list[str]:
    """Top-level modules that an install with no more than `extras` lacks."""
    there = {each.partition(".")[0] for extra in extras for each in EXTRAS[extra]}
    known = {each.partition(".")[0] for modules in EXTRAS.values() for each in modules}
    return sorted({*known, *_TRANSITIVE} - there)


def run_without(absent: Sequence[str], script: str, *words: str, cwd: Path) -> list[Any]:
    """What a script prints as JSON, an object a line, in a process where modules are absent.

    Its last line is a list of the top-level modules that it imported.
    """
    end = "\nprint(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))\n"
    done = subprocess.run(
        [sys.executable, "-c", _BEGIN + script + end, json.dumps(list(absent)), *words],
        cwd=cwd, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]
