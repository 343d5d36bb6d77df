"""What a run of the tests makes once, though several processes run them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


class Once:
    """Makes folders that all processes of a run share; nobody changes them.

    Args:
        temporary: base temporary folder of this process, as pytest gives it.
    """

    def __init__(self, temporary: Path) -> None:
        # Beside the folders of its workers pytest-xdist has nothing of its own.
        self._root = temporary.parent if "PYTEST_XDIST_WORKER" in os.environ else temporary

    def __call__(self, name: str, make: Callable[[Path], object]) -> Path:
        """Folder `name` of the run, made by the first process that asks for it.

        Args:
            make: called with the path of the folder, where nothing is yet.
        """
        folder, done = self._root / name, self._root / f"{name}.done"
        with FileLock(self._root / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                make(folder)
                done.touch()
        return folder
