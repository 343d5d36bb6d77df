"""What a committed figure was made from, as a hash: a test says when the sources have changed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PLUGINS = ROOT / "plugins"

DEFINITIONS = ("reference.py", "packing.py", "nvfp4.py", "CMakeLists.txt", "cmake/*", "csrc/**/*")
"""Globs, below `PLUGINS`, of what decides the output and the time of the attention."""

VIDEO = (
    *(f"plugins/{name}" for name in DEFINITIONS),
    "runtime/emulated/*.py",
    "runtime/model/decode.py",
    "runtime/model/dit.py",
    "runtime/model/loop.py",
    "runtime/model/noise.py",
    "runtime/model/schedule.py",
    "runtime/model/samplers/*.py",
    "runtime/recording/executor.py",
    "runtime/recording/operations.py",
    "runtime/recording/record.py",
)
"""Globs, below the root, of what decides the frames of an emulated video."""


def sources(folder: Path = PLUGINS, definitions: Sequence[str] = DEFINITIONS) -> dict[str, Any]:
    """The globs, and SHA-256 over names and contents of the files that they match."""
    files = sorted({path for pattern in definitions for path in folder.glob(pattern)})
    digest = hashlib.sha256()
    for path in (path for path in files if path.is_file()):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    return {"of": list(definitions), "sha256": digest.hexdigest()}


def sources_now(record: dict[str, Any]) -> dict[str, Any]:
    """`sources` as they are, of the globs that a record names."""
    if tuple(record["of"]) == VIDEO:
        return sources(ROOT, VIDEO)
    return sources()
