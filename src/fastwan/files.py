"""Files that are either whole or not there: atomic writes, hashes, confinement."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fastwan.errors import BadInput

_CHUNK = 4 << 20


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read its bytes.

    Raises:
        BadInput: something else lies there. A pipe is not waited for, a device not read.
        OSError: nothing is there, or it may not be read.
    """
    # Without O_NONBLOCK the call returns when somebody writes to the pipe, which may be never.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BadInput("not a regular file", where=str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


@contextmanager
def atomic_dir(target: Path, *, replace_marker: str | None = None) -> Iterator[Path]:
    """Yield a temporary sibling of `target` that becomes `target` when the body succeeds.

    Args:
        target: folder to create.
        replace_marker: an existing `target` is replaced only if it is empty or holds a file of
            this name, so that a mistyped path never deletes somebody's folder.

    Raises:
        BadInput: `target` exists and may not be replaced.
    """
    target = Path(os.path.abspath(target))
    _check_replaceable(target, replace_marker)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    temporary.chmod(0o755)
    try:
        yield temporary
        _check_replaceable(target, replace_marker)
        if target.exists():
            # Two renames: at every moment either the old or the new folder is complete.
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
            os.rename(target, old / target.name)
            os.rename(temporary, target)
            shutil.rmtree(old)
        else:
            os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _check_replaceable(target: Path, marker: str | None) -> None:
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_dir():
        raise BadInput("output is not a folder", where=str(target), fix="name another one with -o")
    entries = [entry.name for entry in target.iterdir()]
    if entries and marker not in entries:
        raise BadInput(
            "output folder exists and was not made by this tool",
            where=str(target),
            fix="name a new folder or empty this one",
        )


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary sibling path that replaces `target` when the body succeeds."""
    target = Path(os.path.abspath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        prefix=f".{target.stem}.", suffix=target.suffix, dir=target.parent
    )
    os.close(handle)
    temporary = Path(name)
    temporary.chmod(0o644)
    try:
        yield temporary
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def confined_file(folder: Path, relative: str) -> Path:
    """The regular file `relative` inside `folder`, refusing every way out of it.

    Raises:
        BadInput: absolute path, `..`, a symbolic link on the way, a hard link to a file that
            has another name, something that is not a regular file, or nothing there.
    """
    pure = Path(relative)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\\" in relative:
        raise BadInput("path points outside its folder", where=f"{folder.name}/{relative}")
    path = folder
    for part in pure.parts:
        path = path / part
        if path.is_symlink():
            raise BadInput("symbolic link in a bundle", where=f"{folder.name}/{relative}")
    if not path.is_file():
        raise BadInput("file is missing", where=f"{folder.name}/{relative}")
    if path.stat().st_nlink > 1:
        raise BadInput(
            "hard link in a bundle",
            where=f"{folder.name}/{relative}",
            fix="copy the bundle with its files as plain files",
        )
    return path
