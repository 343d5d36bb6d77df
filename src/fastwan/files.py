"""Files that are either whole or not there: atomic writes, hashes, confinement."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path
from typing import BinaryIO

from fastwan.errors import BadInput
from fastwan.hub.links import leads_to_own_blob

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


def is_plain_file(path: Path) -> bool:
    """Whether a regular file, or a link to one, is there; False for a name that none can have.

    Raises:
        OSError: it cannot be told.
    """
    try:
        return path.is_file()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise


def confined_file(
    folder: Path, relative: str, *, shown: str = "", hard_links: bool = False
) -> Path:
    """The regular file `relative` inside `folder`, refusing every way out of it.

    A link of the Hugging Face hub's cache to the blob of the same repository counts as the file.

    Args:
        shown: what messages call the folder; by default its name.
        hard_links: take a file that has another name, too, as in a backup by ``cp -al``; only for
            a file that is held against a hash before it is used.

    Raises:
        BadInput: absolute path, `..`, any other symbolic link on the way, a hard link to a file
            that has another name, something that is not a regular file, or nothing there.
    """
    where = f"{shown or folder.name}/{relative}"
    pure = Path(relative)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\\" in relative:
        raise BadInput("path points outside its folder", where=where)
    *folders, name = pure.parts
    try:
        os.lstat(folder / relative)
    except ValueError:  # a NUL in it
        raise BadInput("file is missing", where=where) from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise BadInput("file is missing", where=where) from None
    path = folder
    for part in folders:
        path = path / part
        if path.is_symlink():
            raise _is_link(where)
    path = path / name
    if path.is_symlink() and not leads_to_own_blob(path):
        raise _is_link(where)
    if not path.is_file():
        raise BadInput("file is missing", where=where)
    if not hard_links and path.stat().st_nlink > 1:
        raise BadInput(
            "hard link in a bundle",
            where=where,
            fix="copy the bundle with its files as plain files",
        )
    return path


def _is_link(where: str) -> BadInput:
    return BadInput(
        "symbolic link in a bundle", where=where, fix="copy the bundle with plain files: cp -rL"
    )
