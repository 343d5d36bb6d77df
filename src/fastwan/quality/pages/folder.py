"""Where a report goes: asked before the work, and before a library is imported."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fastwan.errors import BadInput
from fastwan.outputs import OutputFolder


def report_folder(
    path: Path, inputs: Sequence[Path] = (), option: str = "--report"
) -> OutputFolder:
    """Where a report goes, checked before the work; only an earlier report is replaced.

    Args:
        inputs: what the command reads.
        option: what the user typed it for.

    Raises:
        BadInput: something else lies there, it cannot be written, or it is inside a bundle, whose
            manifest does not list it.
    """
    place = OutputFolder(path, "report", option=option, inputs=tuple(inputs), has_force=False)
    for each in inputs:
        if Path(os.path.realpath(each)) in place.target.parents:
            raise BadInput(
                f"report would lie in the bundle {each}, and be a file too many in it",
                where=str(path),
                fix=f"name another place with {option}",
            )
    return place
