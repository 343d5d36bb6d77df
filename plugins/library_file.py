"""The plugin library as a file: what it is, and what it was built from. Nothing is loaded."""

from __future__ import annotations

import hashlib
import platform
import re
import struct
from functools import cache
from pathlib import Path

from fastwan.errors import BadInput

SOURCE = Path(__file__).resolve().parent
"""Folder of the sources of the library, and of the library in a wheel."""

HOW_TO_BUILD = "fastwan-export build-plugin, or cmake -S plugins -B build/plugins"
HOW_TO_BUILD_EMULATED = "fastwan-export build-plugin --emulated"

_EMULATED_MARK = b" emulated=yes"
_ELF_MACHINES = {"x86_64": 62, "aarch64": 183}
_SOURCES = ("CMakeLists.txt", "exports.map", "cmake/*", "csrc/**/*")
_SOURCE_SUFFIXES = {".cmake", ".cpp", ".cu", ".cuh", ".h", ".map", ".txt"}
_BUILT_FROM = re.compile(rb" sources=([0-9a-f]{64})")


@cache
def sources_digest() -> str:
    """SHA-256 of the library's sources in this copy: of a line with hash and name for each.

    CMakeLists.txt computes the same and writes it into the library's build info.
    """
    paths = {path for pattern in _SOURCES for path in SOURCE.glob(pattern) if path.is_file()}
    names = sorted(p.relative_to(SOURCE).as_posix() for p in paths if p.suffix in _SOURCE_SUFFIXES)
    listing = "".join(
        f"{hashlib.sha256((SOURCE / name).read_bytes()).hexdigest()}  {name}\n" for name in names
    )
    return hashlib.sha256(listing.encode()).hexdigest()


def built_from(path: Path) -> str:
    """`sources_digest` of the sources that a library was built from; empty where it does not say.

    Raises:
        OSError: it cannot be read.
    """
    found = _BUILT_FROM.search(path.read_bytes())
    return found[1].decode() if found else ""


def check_elf(path: Path) -> None:
    """Refuse what the dynamic loader would crash on or reject without a reason.

    Raises:
        BadInput: not a shared library for this machine, or cut off.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(64)
    if len(head) < 64 or head[:4] != b"\x7fELF" or head[4] != 2 or head[5] != 1:
        raise BadInput("not a 64-bit ELF library", where=str(path), fix=HOW_TO_BUILD)
    kind, machine = struct.unpack_from("<HH", head, 16)
    if kind != 3:
        raise BadInput("not a shared library", where=str(path), fix=HOW_TO_BUILD)
    expected = _ELF_MACHINES.get(platform.machine())
    if expected is not None and machine != expected:
        raise BadInput(
            f"library is for another processor (ELF machine {machine}, not {expected})",
            where=str(path),
            fix=HOW_TO_BUILD,
        )
    (sections_at,) = struct.unpack_from("<Q", head, 40)
    entry_bytes, entries = struct.unpack_from("<HH", head, 58)
    end = sections_at + entry_bytes * entries
    if size < end:
        raise BadInput(
            f"library is truncated: {size:,} of at least {end:,} bytes",
            where=str(path),
            fix=HOW_TO_BUILD,
        )


def refuse_emulated(path: Path) -> None:
    """Refuse a library that emulates FP4, by its build info in the file; nothing is loaded.

    Raises:
        BadInput: the library emulates the FP4 MMA.
    """
    if _EMULATED_MARK in path.read_bytes():
        raise BadInput(
            "plugin library emulates FP4 for compute capability 9.0; a bundle is for a GPU that "
            "has it",
            where=str(path),
            fix=HOW_TO_BUILD,
        )
