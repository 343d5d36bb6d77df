"""Files and folders that a command makes for the user: checked before the work, whole or not there.

An existing folder is replaced only if every file in it is proven to be this tool's (`ownership`),
or with ``--force``. It is exchanged with the new one in one step where the system can, so that a
reader finds a whole folder at every moment.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastwan.errors import BadInput, FastWanWarning
from fastwan.held_folder import is_held
from fastwan.ownership import prove, remove_own, write_record
from fastwan.staging import OLD, Staging, made_folders, sweep

_CONTENT = "content"
_NAMED = 3
"""Foreign files that a message names."""

_EXCHANGE = 2  # RENAME_EXCHANGE of linux/fs.h
_AT_FDCWD = -100

Known = Mapping[str, tuple[int, str]]


@dataclass(frozen=True)
class OutputFolder:
    """A folder to make, checked when it is constructed.

    Args:
        path: as the user named it; links are followed.
        kind: ``bundle``, ``checkpoint`` or ``frames``; a folder of another kind is foreign.
        force: replace a folder whatever it holds.
        option: what the user typed it for, to name in messages.
        inputs: what the command reads; none of it may lie in the folder.
        has_force: whether the command has ``--force`` for it.

    Raises:
        BadInput: the folder may not be replaced or cannot be made.
    """

    path: Path
    kind: str
    force: bool = False
    option: str = "-o"
    inputs: tuple[Path, ...] = ()
    has_force: bool = True

    def __post_init__(self) -> None:
        self._refuse_place()
        if os.path.lexists(self.target):
            self._refuse_foreign(self.target)
        _check_writable(self.target, self.option)

    @property
    def target(self) -> Path:
        """Absolute path with links followed."""
        return Path(os.path.realpath(self.path))

    def _refuse_place(self) -> None:
        target, here = self.target, Path.cwd()
        if target == here or target in here.parents:
            raise BadInput(
                "output is the current folder or holds it",
                where=str(self.path),
                fix=f"name another one with {self.option}",
            )
        for each in self.inputs:
            source = Path(os.path.realpath(each))
            if source == target or target in source.parents:
                raise BadInput(
                    f"output would replace the input {each}",
                    where=str(self.path),
                    fix=f"name another one with {self.option}",
                )

    def _refuse_foreign(self, folder: Path) -> tuple[str, ...]:
        """Files of the folder that are this tool's own; raises where there are others."""
        if not folder.is_dir():
            raise BadInput(
                "output is not a folder", where=str(self.path), fix=f"name one with {self.option}"
            )
        if self.force:
            return ()
        proof = prove(folder)
        foreign = proof.foreign if proof.kind in (None, self.kind) else proof.own
        if foreign:
            raise BadInput(
                f"output folder holds what was not written there as a {self.kind} by this tool: "
                f"{_listed(foreign)}",
                where=str(self.path),
                fix=f"name another one with {self.option}, or "
                + ("delete all of it with --force" if self.has_force else "remove it"),
            )
        return proof.own

    def doomed(self) -> tuple[str, ...]:
        """Foreign files that `force` is about to delete, relative to the folder."""
        return prove(self.target).foreign if self.force and self.target.is_dir() else ()

    def tell_what_is_deleted(self) -> None:
        """Warn of the files that `force` is about to delete and this tool did not write."""
        doomed = self.doomed()
        if doomed:
            text = f"--force deletes {_listed(doomed)} in {self.path}"
            warnings.warn(text, FastWanWarning, stacklevel=2)

    @contextmanager
    def make(self) -> Iterator[Path]:
        """Yield the folder to fill; it becomes the target when the body succeeds.

        Raises:
            BadInput: the target changed meanwhile and may not be replaced any more.
            OSError: it cannot be written.
        """
        with self.make_recorded() as (folder, _):
            yield folder

    @contextmanager
    def make_recorded(self) -> Iterator[tuple[Path, dict[str, tuple[int, str]]]]:
        """Like `make`; the body may leave (bytes, SHA-256) of files it hashed in the mapping."""
        target = self.target
        with made_folders(target.parent):
            sweep(target.parent)
            stage = Staging(target.parent)
            try:
                folder = stage.folder / _CONTENT
                folder.mkdir(mode=0o755)
                known: dict[str, tuple[int, str]] = {}
                yield folder, known
                write_record(folder, self.kind, known)
                self._publish(stage, folder, target)
            finally:
                stage.remove()

    def _publish(self, stage: Staging, folder: Path, target: Path) -> None:
        if not os.path.lexists(target):
            try:
                os.rename(folder, target)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise  # else another run made it a moment ago
        if target.is_symlink() or not target.is_dir():
            raise BadInput("output is not a folder any more", where=str(self.path))
        old = stage.folder / OLD
        if exchange(folder, target):
            os.rename(folder, old)
        else:
            stage.note(target=target.name)
            os.rename(target, old)
            os.rename(folder, target)
            stage.note()
        try:
            own = self._refuse_foreign(old)  # nobody finds it by its name any more
        except BadInput:
            if not exchange(old, target):
                os.rename(target, folder)
                os.rename(old, target)
            raise
        if is_held(old):
            stage.leave()  # somebody reads it; a later run removes it
            return
        if self.force:
            shutil.rmtree(old, ignore_errors=True)
            return
        remove_own(old, own)
        if old.exists():  # somebody worked inside and has just written there
            kept = target.with_name(f"kept{stage.folder.name}")
            os.rename(old, kept)
            text = f"files that were added to {target} meanwhile are in {kept}"
            warnings.warn(text, FastWanWarning, stacklevel=2)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def exchange(left: Path, right: Path) -> bool:
    """Exchange two folders in one step; False where the system or the file system cannot.

    Raises:
        OSError: it can, and did not.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    names = (os.fsencode(left), os.fsencode(right))
    if renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(right))


@dataclass(frozen=True)
class OutputFile:
    """A file to make, checked when it is constructed.

    Args:
        path: as the user named it; links are followed.
        proves: tells whether an existing file is this tool's own.
        force: replace a file whatever it is.
        option: what the user typed it for.
        has_force: whether the command has ``--force``.

    Raises:
        BadInput: the file may not be replaced or cannot be made.
    """

    path: Path
    proves: Callable[[Path], bool]
    force: bool = False
    option: str = "-o"
    has_force: bool = True

    def __post_init__(self) -> None:
        self._refuse_foreign()
        _check_writable(self.target, self.option)

    @property
    def target(self) -> Path:
        """Absolute path with links followed."""
        return Path(os.path.realpath(self.path))

    def _refuse_foreign(self) -> None:
        target = self.target
        if not os.path.lexists(target):
            return
        if not stat.S_ISREG(os.lstat(target).st_mode):
            what = "a folder" if target.is_dir() else "not a plain file"
            raise BadInput(f"output is {what}", where=str(self.path), fix="name a file")
        if not self.force and not self.proves(target):
            raise BadInput(
                "output exists and was not made by this tool",
                where=str(self.path),
                fix=f"name another one with {self.option}"
                + (", or replace it with --force" if self.has_force else ""),
            )

    @contextmanager
    def make(self) -> Iterator[Path]:
        """Yield a path to write; it becomes the target when the body succeeds."""
        target = self.target
        with made_folders(target.parent):
            sweep(target.parent)
            stage = Staging(target.parent)
            try:
                temporary = stage.folder / f"{_CONTENT}{target.suffix}"
                yield temporary
                temporary.chmod(0o644)
                self._refuse_foreign()
                os.replace(temporary, target)
            finally:
                stage.remove()


def _check_writable(target: Path, option: str) -> None:
    """Find out whether `target` can be made, and leave nothing behind.

    Raises:
        BadInput: its name is too long, or its folder cannot be made or written.
    """
    try:
        os.lstat(target)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _unwritable(target, option, error) from error
    try:
        parent = next(each for each in target.parents if each.exists())
        if not parent.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(parent))
        Staging(parent).remove()
    except OSError as error:
        raise _unwritable(target, option, error) from error


def _unwritable(target: Path, option: str, error: OSError) -> BadInput:
    return BadInput(
        f"output cannot be written: {error.strerror}",
        where=str(target),
        fix=f"name another place with {option}",
    )
