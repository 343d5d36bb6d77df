"""What a committed figure was made from, as a hash: a test says when the sources have changed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

PLUGINS = Path(__file__).resolve().parent.parent / "plugins"

DEFINITIONS = ("reference.py", "packing.py", "nvfp4.py", "CMakeLists.txt", "cmake/*", "csrc/**/*")
"""Globs, below `PLUGINS`, of what decides the output and the time of the attention."""


def sources(folder: Path = PLUGINS) -> dict[str, Any]:
    """`DEFINITIONS`, and SHA-256 over names and contents of the files that they match."""
    files = sorted(path for pattern in DEFINITIONS for path in folder.glob(pattern))
    digest = hashlib.sha256()
    for path in (path for path in files if path.is_file()):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    return {"of": list(DEFINITIONS), "sha256": digest.hexdigest()}
