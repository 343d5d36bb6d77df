"""A seal at the end of a video file: proof that this tool wrote it, and that nobody changed it.

The seal is one more box of the ISO base media format (ISO/IEC 14496-12), of type ``uuid``, which
players skip. It holds the SHA-256 of all bytes before it.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from pathlib import Path

_TYPE = b"uuid"
_ID = bytes.fromhex("8d3f4be2a6f14c0f9f5e6f1b7c2a90d4")
_NAME = b"fastwan-export\0"
_HEAD = struct.pack(">I", 8 + len(_ID) + len(_NAME) + 32) + _TYPE + _ID + _NAME
SEAL_BYTES = len(_HEAD) + 32
_CHUNK = 4 << 20


def seal(path: Path) -> None:
    """Append the seal to a finished mp4 file."""
    digest = _digest(path, path.stat().st_size)
    with path.open("ab") as stream:
        stream.write(_HEAD + digest)


def is_sealed(path: Path) -> bool:
    """Whether this tool wrote the file and nobody changed it since; reads it once."""
    try:
        found = os.lstat(path)
        if not stat.S_ISREG(found.st_mode) or found.st_size < SEAL_BYTES:
            return False
        size = found.st_size - SEAL_BYTES
        with path.open("rb") as stream:
            stream.seek(size)
            end = stream.read(SEAL_BYTES)
        return end[: len(_HEAD)] == _HEAD and end[len(_HEAD) :] == _digest(path, size)
    except OSError:
        return False


def _digest(path: Path, size: int) -> bytes:
    """SHA-256 of the first `size` bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while size > 0 and (chunk := stream.read(min(size, _CHUNK))):
            digest.update(chunk)
            size -= len(chunk)
    return digest.digest()
