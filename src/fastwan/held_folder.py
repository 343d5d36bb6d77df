"""A folder that stays the same while another takes its place.

A writer publishes a bundle by exchanging two folders. A reader that goes on by the name would read
some files of one and some of the other; one that holds the folder itself does not. It also keeps a
shared lock on it, so that the writer leaves the old folder to a later run.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_DESCRIPTORS = Path("/proc/self/fd")


class HeldFolder:
    """An open folder.

    Attributes:
        path: leads to this very folder whatever lies under its name; where the system has no such
            path, the name.
    """

    def __init__(self, name: Path) -> None:
        """Open a folder.

        Raises:
            OSError: there is none, or it may not be read.
        """
        self._name = name
        self.path = name
        self._descriptor = -1
        if sys.platform == "win32" or not hasattr(os, "O_DIRECTORY"):
            return
        self._descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if (_DESCRIPTORS / str(self._descriptor)).is_dir():
            self.path = _DESCRIPTORS / str(self._descriptor)

    def replaced(self) -> bool:
        """Whether another folder, or nothing, lies under the name now."""
        if self._descriptor < 0:
            return False
        held = os.fstat(self._descriptor)
        try:
            found = os.stat(self._name)
        except OSError:
            return True
        return (found.st_dev, found.st_ino) != (held.st_dev, held.st_ino)

    def close(self) -> None:
        """Let the folder go; `path` leads nowhere from here on."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        self.close()


def is_held(folder: Path) -> bool:
    """Whether a process holds a folder open to read it."""
    if sys.platform == "win32" or not hasattr(os, "O_DIRECTORY"):
        return False
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
