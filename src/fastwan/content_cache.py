"""The one cache of finished work: entries by a hash of what they were made of.

An entry is a folder ``<root>/<kind>/<key>/``, see `fastwan.cache_entry`. What is read back is what
was stored, or it is a miss. A cache that cannot be read or written costs time and one warning,
never the work.
"""

from __future__ import annotations

import errno
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from fastwan.cache_entry import (
    RECORD,
    Content,
    Damaged,
    Record,
    file_chunks,
    read_record,
    write_entry,
)
from fastwan.cache_folder import DIRECTORY_VARIABLE, cache_root, max_cache_bytes
from fastwan.errors import EnvironmentLacks, FastWanWarning
from fastwan.staging import staging

Kind = Literal["exports", "engines", "runtime", "prompts"]
KINDS: tuple[Kind, ...] = ("exports", "engines", "runtime", "prompts")

_SCRATCH = ".tmp"
KEY = re.compile(r"[0-9a-f]{64}")
_SAID: set[Path | None] = set()  # roots that a warning was given for


def stored_entries(root: Path) -> Iterator[tuple[Kind, str, int, int]]:
    """Kind, key, time of last use in ns since 1970 and bytes of all entries, whole or damaged.

    The time of an entry without a record is 0.
    """
    for kind in KINDS:
        folder = root / kind
        try:
            names = sorted(filter(KEY.fullmatch, os.listdir(folder)))
        except OSError:
            continue
        for name in names:
            used, size = 0, 0
            with suppress(OSError):  # another process removes it
                for file in os.scandir(folder / name):
                    status = file.stat(follow_symlinks=False)
                    size += status.st_size
                    if file.name == RECORD:
                        used = status.st_mtime_ns
            yield kind, name, used, size


class ContentCache:
    """Entries of one kind. Any number of threads and processes may use one folder at once.

    Args:
        kind: what the entries are.
        root: folder of all kinds; by default `cache_root`.
        max_bytes: size of all kinds together above which the entries that were used longest ago
            are removed; by default `max_cache_bytes`.

    Attributes:
        folder: where the entries of this kind lie; None where there is no place for them.

    Raises:
        EnvironmentLacks: see `max_cache_bytes`. Every other fault is a warning.
    """

    def __init__(self, kind: Kind, root: Path | None = None, max_bytes: int | None = None) -> None:
        self._kind = kind
        self._max_bytes = max_cache_bytes() if max_bytes is None else max_bytes
        self._total: int | None = None
        self._counting = threading.Lock()
        self._writable = True
        self._option = "--prompt-cache" if kind == "prompts" else DIRECTORY_VARIABLE
        self.folder: Path | None = None
        try:
            self.folder = (root or cache_root()) / kind
            for each in (self.folder.parent, self.folder, self._scratch):
                each.mkdir(parents=True, exist_ok=True, mode=0o700)
            with staging(self._scratch):  # and what killed processes left there is removed
                pass
        except (OSError, EnvironmentLacks) as error:
            self._stop_writing(error)

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Hold a key while its entry is made, so that nobody makes it twice at once.

        Some keys share a lock, so hold one at a time. Where files cannot be locked nothing is held.
        """
        held: FileLock | None = None
        if self._writable:
            # A soft lock would be believed for ever after a crash; without any, work is done twice.
            held = FileLock(self._scratch / f"{key[:2]}.lock", fallback_to_soft=False)
            with suppress(OSError):
                held.acquire()
        try:
            yield
        finally:
            if held is not None:
                held.release()

    def read(self, key: str) -> tuple[dict[str, bytearray], dict[str, Any]] | None:
        """Contents of an entry by file name, and its note; None where there is none whole."""
        contents: dict[str, bytearray] = {}

        def keep(name: str, chunks: Iterator[bytes]) -> None:
            contents[name] = bytearray()
            for chunk in chunks:
                contents[name] += chunk

        record = self._each_file(key, keep)
        return None if record is None else (contents, record.note)

    def copy(self, key: str, place: Callable[[str], Path]) -> Record | None:
        """Copy the files of an entry, and return its record; None where there is none whole.

        Args:
            place: path to copy a file of that name to. Nothing stays there unless all of the entry
                is what was stored.

        Raises:
            OSError: a copy cannot be written.
        """
        written: list[Path] = []

        def write(name: str, chunks: Iterator[bytes]) -> None:
            written.append(place(name))
            with written[-1].open("wb") as stream:
                for chunk in chunks:
                    stream.write(chunk)

        record = None
        try:
            record = self._each_file(key, write)
        finally:
            if record is None:
                for path in written:
                    path.unlink(missing_ok=True)
        return record

    def put(
        self,
        key: str,
        contents: Mapping[str, Content],
        note: Mapping[str, object],
        *,
        replace: bool = False,
    ) -> Record | None:
        """Store an entry, whole or not at all. An entry that is there already is left alone.

        Args:
            contents: bytes, or the file to copy them from, by file name.
            note: comes back with the files; JSON-able.
            replace: put it in the place of the entry that is there.

        Returns:
            Hash and size of each file; None where the cache cannot be written.
        """
        if self._writable:
            try:
                return self._store(key, contents, note, replace)
            except OSError as error:
                self._stop_writing(error)
        return None

    def forget(self, key: str) -> None:
        """Remove an entry, where there is one."""
        if self.folder is not None:
            self._move_away(self._entry(key))

    @property
    def _scratch(self) -> Path:
        assert self.folder is not None
        return self.folder / _SCRATCH

    def _entry(self, key: str) -> Path:
        if not KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no hex SHA-256")
        assert self.folder is not None
        return self.folder / key

    def _each_file(self, key: str, use: Callable[[str, Iterator[bytes]], None]) -> Record | None:
        """Give the bytes of every file to `use`; None, and no entry any more, where one differs."""
        if self.folder is None:
            return None
        entry = self._entry(key)
        if not os.path.lexists(entry):
            return None
        try:
            record = read_record(entry, self._kind)
            for name, file in record.files.items():
                use(name, file_chunks(entry / name, file))
        except Damaged:
            self._move_away(entry)
            return None
        with suppress(OSError):
            os.utime(entry / RECORD)
        return record

    def _store(
        self,
        key: str,
        contents: Mapping[str, Content],
        note: Mapping[str, object],
        replace: bool,
    ) -> Record:
        entry = self._entry(key)
        with staging(self._scratch) as scratch:
            made = scratch / key
            record = write_entry(made, self._kind, contents, note)
            if record.size > self._max_bytes:
                return record
            if os.path.lexists(entry) and (replace or not entry.is_dir()):
                self._move_away(entry)
            try:
                os.rename(made, entry)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                return record  # another process was quicker
        self._make_room(record.size, entry)
        return record

    def _make_room(self, added: int, keep: Path) -> None:
        """Remove the entries used longest ago until the rest fits; `keep` stays."""
        with self._counting:
            if self._total is None:
                self._total = sum(size for _, size, _ in self._entries())
            else:
                self._total += added
            if self._total <= self._max_bytes:
                return
            # Other processes come and go: what is there is counted anew.
            entries = sorted(self._entries())
            self._total = sum(size for _, size, _ in entries)
            for _, size, entry in entries:
                if self._total <= self._max_bytes:
                    return
                if entry != keep:
                    self._move_away(entry)
                    self._total -= size

    def _entries(self) -> Iterator[tuple[int, int, Path]]:
        """(time of last use, bytes, path) of the entries of all kinds, whole or damaged."""
        assert self.folder is not None
        root = self.folder.parent
        for kind, key, used, size in stored_entries(root):
            yield used, size, root / kind / key

    def _move_away(self, entry: Path) -> None:
        """Take an entry away in one step; for a process that reads it now it is a miss."""
        with suppress(OSError), staging(self._scratch) as scratch:
            os.rename(entry, scratch / entry.name)

    def _stop_writing(self, error: OSError | EnvironmentLacks) -> None:
        """Go on without keeping anything; a process says so once for all kinds."""
        self._writable = False
        root = None if self.folder is None else self.folder.parent
        if root in _SAID:
            return
        _SAID.add(root)
        where = "" if root is None else f" in {root}"
        what = error.what if isinstance(error, EnvironmentLacks) else error.strerror or error
        warnings.warn(
            f"the cache{where} cannot be written ({what}), so nothing is kept: set "
            f"{self._option} to a folder that can be written",
            FastWanWarning,
            stacklevel=2,
        )
