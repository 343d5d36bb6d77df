"""A seal at the end of a video file: proof that this tool wrote it, and that nobody changed it.

The seal is one more box of the ISO base media format (ISO/IEC 14496-12), of type ``uuid``, which
players skip. It holds the SHA-256 of all bytes before it.
"""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path
from typing import BinaryIO

from fastwan.errors import BadInput
from fastwan.files import open_regular

_TYPE = b"uuid"
_ID = bytes.fromhex("8d3f4be2a6f14c0f9f5e6f1b7c2a90d4")
_NAME = b"fastwan-export\0"
_HEAD = struct.pack(">I", 8 + len(_ID) + len(_NAME) + 32) + _TYPE + _ID + _NAME
SEAL_BYTES = len(_HEAD) + 32
_CHUNK = 4 << 20


def seal(path: Path) -> None:
    """Append the seal to a finished mp4 file."""
    with path.open("r+b") as stream:
        digest = _digest(stream, path.stat().st_size)
        stream.seek(0, os.SEEK_END)
        stream.write(_HEAD + digest)


def is_sealed(path: Path) -> bool:
    """Whether this tool wrote the file and nobody changed it since; reads it once."""
    try:
        # One open file: another run may put a new one under the name meanwhile.
        with open_regular(path) as stream:
            size = os.fstat(stream.fileno()).st_size - SEAL_BYTES
            if size < 0:
                return False
            digest = _digest(stream, size)
            return stream.read() == _HEAD + digest
    except (BadInput, OSError):
        return False


def _digest(stream: BinaryIO, size: int) -> bytes:
    """SHA-256 of the next `size` bytes."""
    digest = hashlib.sha256()
    while size > 0 and (chunk := stream.read(min(size, _CHUNK))):
        digest.update(chunk)
        size -= len(chunk)
    return digest.digest()
