"""The videos of jobs, in a folder."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from fastwan.runtime.video import Output

_NAME = re.compile(r"video_[0-9a-f]{32}\.mp4")


class Results:
    """Files whose names are ids that this tool drew: nothing of a request becomes a path.

    Args:
        folder: made where nothing is.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder

    def path(self, job_id: str) -> Path:
        """Where a job's video lies, or is going to.

        Args:
            job_id: of a job of the store.
        """
        return self._folder / f"{job_id}.mp4"

    def output(self, job_id: str) -> Output:
        """The same, to write."""
        return Output("mp4", self.path(job_id))

    def remove(self, job_ids: Collection[str]) -> None:
        """Delete the videos of some jobs; a reader that has one open reads on."""
        for job_id in job_ids:
            self.path(job_id).unlink(missing_ok=True)

    def remove_others(self, job_ids: Collection[str]) -> None:
        """Delete the videos of jobs that are not there any more: what a killed server left."""
        kept = {self.path(each).name for each in job_ids}
        for file in self._folder.iterdir():
            if _NAME.fullmatch(file.name) and file.name not in kept:
                file.unlink(missing_ok=True)
