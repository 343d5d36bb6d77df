"""Which files of a folder this tool wrote: a record beside them, and the proof that it still holds.

The record lists every file with size and SHA-256. A file counts as this tool's own while it is a
plain file with the recorded content; everything else in the folder is foreign.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fastwan.errors import BadInput
from fastwan.files import sha256_file
from fastwan.strict_json import read_json

RECORD = "fastwan-export.json"
"""Lies in every folder that a command makes for the user."""

TOOL = "fastwan-export"
_MAX_RECORD = 64 << 20


@dataclass(frozen=True)
class Proof:
    """What a folder holds, by a look at every file in it.

    Attributes:
        kind: what the record says the folder is, e.g. ``bundle``; None without a record.
        own: files with the recorded content, relative to the folder, the record among them.
        foreign: everything else: other files, changed ones, links, empty folders.
    """

    kind: str | None
    own: tuple[str, ...]
    foreign: tuple[str, ...]


def write_record(folder: Path, kind: str, known: Mapping[str, tuple[int, str]] = {}) -> None:
    """Record every file of a finished folder.

    Args:
        kind: ``bundle``, ``checkpoint`` or ``frames``.
        known: (bytes, SHA-256) by relative path of files that were hashed already.

    Raises:
        BadInput: something in the folder is not a plain file.
    """
    files = {}
    for name, found in _entries(folder):
        if not stat.S_ISREG(found.st_mode):
            raise BadInput("not a plain file", where=str(folder / name))
        digest = known[name] if name in known else (found.st_size, sha256_file(folder / name))
        files[name] = {"bytes": digest[0], "sha256": digest[1]}
    record = {"tool": TOOL, "kind": kind, "files": files}
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def prove(folder: Path) -> Proof:
    """Compare a folder with its record; reads every recorded file of the right size once.

    A folder that another run exchanges meanwhile is looked at again: the record of one and the
    files of another would prove nothing.
    """
    while True:
        before = _identity(folder)
        try:
            proof = _prove(folder)
        except OSError:
            if _identity(folder) == before:
                raise
            continue
        if _identity(folder) == before:
            return proof


def _identity(folder: Path) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def _prove(folder: Path) -> Proof:
    kind, recorded = _read_record(folder)
    own, foreign = [], []
    for name, found in _entries(folder):
        size, digest = recorded.get(name, (-1, ""))
        if (name == RECORD and kind is not None) or (
            stat.S_ISREG(found.st_mode) and found.st_size == size and _hash(folder / name) == digest
        ):
            own.append(name)
        else:
            foreign.append(name)
    return Proof(kind, tuple(own), tuple(foreign))


def remove_own(folder: Path, own: Iterable[str]) -> None:
    """Delete the files named and the folders that are empty then; anything else stays."""
    folders = {folder}
    for name in own:
        path = folder / name
        path.unlink(missing_ok=True)
        folders.update(path.parents[: len(Path(name).parts)])
    for each in sorted(folders, key=lambda path: len(path.parts), reverse=True):
        try:
            each.rmdir()
        except OSError:
            continue


def _read_record(folder: Path) -> tuple[str | None, dict[str, tuple[int, str]]]:
    """Kind and files of a folder's record; (None, {}) where there is none of this tool's."""
    path = folder / RECORD
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return None, {}
        loaded = read_json(path, max_bytes=_MAX_RECORD)
        if loaded["tool"] != TOOL or not isinstance(loaded["kind"], str):
            return None, {}
        files = {
            str(name): (int(entry["bytes"]), str(entry["sha256"]))
            for name, entry in loaded["files"].items()
        }
    except (OSError, BadInput, ValueError, KeyError, TypeError, AttributeError):
        return None, {}
    return loaded["kind"], files


def _entries(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Relative path and status of all that is no folder with something in it."""
    pending = [folder]
    while pending:
        current = pending.pop()
        inside = sorted(os.scandir(current), key=lambda entry: entry.name)
        if not inside and current != folder:
            yield current.relative_to(folder).as_posix(), os.lstat(current)
        for entry in inside:
            if entry.is_dir(follow_symlinks=False):
                pending.append(Path(entry.path))
            else:
                path = Path(entry.path)
                yield path.relative_to(folder).as_posix(), entry.stat(follow_symlinks=False)


def _hash(path: Path) -> str | None:
    try:
        return sha256_file(path)
    except OSError:
        return None
