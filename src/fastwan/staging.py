"""Hidden folders that work is done in before it is published, and what killed runs left of them.

A staging folder lies beside its target, so that publishing is a rename. It holds a lock file that
its owner keeps locked while it lives. The lock file also names the folder that it was made for by
device and inode: a folder is removed as a leftover only if this tool made exactly this folder and
nobody holds its lock, or if there is nothing in it yet.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastwan.errors import BadInput
from fastwan.held_folder import is_held
from fastwan.strict_json import parse_json

if sys.platform != "win32":  # which keeps its leftovers
    import fcntl

PREFIX = ".fastwan-"
"""Begins the name of every staging folder; short, so that any legal target has one beside it."""

LOCK = ".lock"
OLD = "old"
"""What an output folder was, between being moved aside and being deleted."""

TOOL = "fastwan-export"

_LIMIT = 4096
_NAME = re.compile(re.escape(PREFIX) + "[0-9a-f]{16}")


class Staging:
    """A staging folder with the lock that keeps it.

    Attributes:
        folder: the hidden folder; its files belong to the caller.
    """

    def __init__(self, parent: Path) -> None:
        """Make a folder in `parent`, which exists.

        Raises:
            OSError: `parent` cannot be written.
        """
        while not self._begin(parent):
            pass  # another run took it for a leftover before it was locked

    def _begin(self, parent: Path) -> bool:
        """Make and lock a folder; False where it went at once."""
        self.folder = parent / f"{PREFIX}{secrets.token_hex(8)}"
        self.folder.mkdir(mode=0o755)
        self._descriptor = -1
        self._left = False
        self._noted = 0
        try:
            self._descriptor = _locked(self.folder / LOCK)
            self.note()
            return True
        except (FileNotFoundError, BlockingIOError):
            self.remove()
            return False
        except BaseException:
            self.remove()
            raise

    def note(self, **facts: str) -> None:
        """Write the lock file anew: whose folder it is, and `facts` that a recovery needs."""
        found = self.folder.stat()
        record = {"tool": TOOL, "device": found.st_dev, "inode": found.st_ino, **facts}
        # Never shorter than before: one call writes it whole, wherever a kill comes.
        content = json.dumps(record).encode().ljust(self._noted)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self._noted = os.write(self._descriptor, content)

    def release(self) -> None:
        """Give up the lock; what is left of the folder is a leftover from here on."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def leave(self) -> None:
        """Leave the folder to a later run; `remove` does nothing then but give up the lock."""
        self._left = True

    def remove(self) -> None:
        """Delete the folder and all that is in it."""
        if not self._left:
            _delete(self.folder)
        self.release()


@contextmanager
def staging(parent: Path) -> Iterator[Path]:
    """A staging folder in `parent` that is gone afterwards; parents that were made go with it.

    Leftovers of killed runs in `parent` are removed first.

    Raises:
        OSError: `parent` cannot be made or written.
    """
    with made_folders(parent):
        sweep(parent)
        stage = Staging(parent)
        try:
            yield stage.folder
        finally:
            stage.remove()


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a path in a hidden sibling folder that replaces `target` when the body succeeds.

    Parents are made, and removed again if the body fails.
    """
    target = Path(os.path.abspath(target))
    with staging(target.parent) as folder:
        temporary = folder / f"content{target.suffix}"
        yield temporary
        temporary.chmod(0o644)
        os.replace(temporary, target)


@contextmanager
def made_folders(folder: Path) -> Iterator[None]:
    """Make `folder` and its parents; those made and still empty are removed if the body fails."""
    made: list[Path] = []
    for each in reversed((folder, *folder.parents)):
        try:
            each.mkdir()
        except FileExistsError:
            continue
        except OSError:
            if each.is_dir():  # a mount point or a read-only system says so instead
                continue
            _remove_empty(made)
            raise
        made.append(each)
    try:
        yield
    except BaseException:
        _remove_empty(made)
        raise


def _remove_empty(folders: list[Path]) -> None:
    for folder in reversed(folders):
        with contextlib.suppress(OSError):
            folder.rmdir()


def sweep(parent: Path) -> None:
    """Remove the staging folders in `parent` whose owners are gone.

    What such an owner had moved aside and not yet replaced is put back.
    """
    try:
        candidates = [each for each in parent.iterdir() if each.name.startswith(PREFIX)]
    except OSError:
        return
    for folder in candidates:
        _sweep_one(folder)


def _sweep_one(folder: Path) -> None:
    if sys.platform == "win32":
        return
    try:
        found = os.lstat(folder)
        if not stat.S_ISDIR(found.st_mode):
            return
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        if _NAME.fullmatch(folder.name):
            with contextlib.suppress(OSError):  # not empty, or being made at this moment
                folder.rmdir()
        return
    except OSError:
        return  # not ours
    try:
        if _is_unsigned(folder, descriptor):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_unsigned(folder, descriptor):  # still, now that nobody else can sign
                _delete(folder)
            return
        record = _record(descriptor)
        if record.get("tool") != TOOL or (record.get("device"), record.get("inode")) != (
            found.st_dev,
            found.st_ino,
        ):
            return
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _put_back(folder, record.get("target"))
        if is_held(folder / OLD):
            return
        _delete(folder)
    except OSError:
        return  # its owner lives
    finally:
        os.close(descriptor)


def _is_unsigned(folder: Path, descriptor: int) -> bool:
    """Whether a folder is a staging folder by its name, and holds an empty lock file alone."""
    lock = os.fstat(descriptor)
    named = _NAME.fullmatch(folder.name) is not None
    empty = stat.S_ISREG(lock.st_mode) and lock.st_size == 0
    return named and empty and os.listdir(folder) == [LOCK]


def _delete(folder: Path) -> None:
    """Delete a folder, its lock file last: what a kill leaves can be told until then."""
    with contextlib.suppress(OSError):
        for each in os.scandir(folder):
            if each.is_dir(follow_symlinks=False):
                shutil.rmtree(each.path, ignore_errors=True)
            elif each.name != LOCK:
                os.unlink(each.path)
    with contextlib.suppress(OSError):
        if os.listdir(folder) in ([], [LOCK]):
            (folder / LOCK).unlink(missing_ok=True)
            folder.rmdir()


def _put_back(folder: Path, name: object) -> None:
    if not isinstance(name, str) or not name or os.sep in name:
        return
    target = folder.parent / name
    if not os.path.lexists(target) and (folder / OLD).is_dir():
        os.rename(folder / OLD, target)


def _record(descriptor: int) -> dict[str, object]:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return {}
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        return parse_json(os.read(descriptor, _LIMIT), LOCK)
    except BadInput:
        return {}


def _locked(path: Path) -> int:
    """A new lock file, locked.

    Raises:
        BlockingIOError, FileNotFoundError: a sweep has it, or removed it.
        OSError: it cannot be made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        if sys.platform != "win32":
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:  # a file system without locks keeps its leftovers
                if error.errno == errno.EWOULDBLOCK:
                    raise
        os.stat(path)  # a sweep that was quicker has removed it
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
