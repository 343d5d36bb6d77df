"""An entry of the cache: a folder of files, and the record that they are held against."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fastwan.errors import BadInput, FastWanError
from fastwan.files import open_regular
from fastwan.strict_json import parse_json

RECORD = "record.json"
MAX_RECORD_BYTES = 64 << 20

Content = bytes | memoryview | Path
"""What a file is made of: bytes, or the file to copy them from."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_CHUNK = 4 << 20


class Damaged(Exception):
    """An entry is not what was stored."""


class StoredFile(BaseModel):
    """Hash and size of a file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Record(BaseModel):
    """Contents of ``record.json``, beside a hash of them.

    Attributes:
        kind, key: the entry's own, so that one that was moved or renamed is no other's.
        files: by name.
        note: of whoever stored the entry.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_version: Literal[1] = 1
    kind: str
    key: str
    files: dict[str, StoredFile]
    note: dict[str, Any]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files.values())

    def encoded(self) -> bytes:
        """The only bytes that this record is stored as."""
        # Keys stay in their order: a cached part of a bundle is written as the first time.
        body = json.dumps(self.model_dump(), allow_nan=False)
        digest = hashlib.sha256(body.encode()).hexdigest()
        return f'{{"record": {body}, "sha256": "{digest}"}}\n'.encode()


def write_entry(
    folder: Path, kind: str, contents: Mapping[str, Content], note: Mapping[str, object]
) -> Record:
    """Write an entry's folder, named by its key.

    Args:
        folder: to be created.

    Raises:
        OSError: it cannot be written, or a file not be copied.
        ValueError: a name is none for a file of an entry.
    """
    if RECORD in contents or not all(map(_NAME.fullmatch, contents)):
        raise ValueError(f"not names of files in an entry: {sorted(contents)}")
    folder.mkdir(mode=0o700)
    files = {name: _write(folder / name, content) for name, content in contents.items()}
    plain = json.loads(json.dumps(note))
    record = Record(kind=kind, key=folder.name, files=files, note=plain)
    (folder / RECORD).write_bytes(record.encoded())
    return record


def _write(path: Path, content: Content) -> StoredFile:
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as stream:
        if isinstance(content, Path):
            with open_regular(content) as source:
                while chunk := source.read(_CHUNK):
                    digest.update(chunk)
                    size += stream.write(chunk)
        else:
            digest.update(content)
            size = stream.write(content)
    return StoredFile(sha256=digest.hexdigest(), bytes=size)


def read_record(folder: Path, kind: str) -> Record:
    """The record of an entry's folder.

    Raises:
        Damaged: not byte for byte what `write_entry` writes, or of another entry.
    """
    try:
        with open_regular(folder / RECORD) as stream:
            raw = stream.read(MAX_RECORD_BYTES)
        record = Record.model_validate(parse_json(raw, RECORD).get("record"))
    except (OSError, ValidationError, FastWanError):
        raise Damaged from None
    sound = raw == record.encoded() and all(map(_NAME.fullmatch, record.files))
    if not sound or (record.kind, record.key) != (kind, folder.name):
        raise Damaged
    return record


def file_chunks(path: Path, file: StoredFile) -> Iterator[bytes]:
    """Bytes of a file of an entry; the hash is taken of the very bytes that are handed out.

    Raises:
        Damaged: they are others than were stored; at the latest behind the last one.
    """
    digest, left = hashlib.sha256(), file.bytes
    try:
        with open_regular(path) as stream:
            if os.fstat(stream.fileno()).st_size != file.bytes:
                raise Damaged
            while left:
                chunk = stream.read(min(_CHUNK, left))
                if not chunk:
                    raise Damaged
                left -= len(chunk)
                digest.update(chunk)
                yield chunk
    except (OSError, BadInput):
        raise Damaged from None
    if digest.hexdigest() != file.sha256:
        raise Damaged
