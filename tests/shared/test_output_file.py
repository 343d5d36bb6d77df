"""An output file: nothing of the user's is replaced without proof or force."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from fastwan.errors import BadInput
from fastwan.outputs import OutputFile


def tree(folder: Path) -> dict[str, str]:
    """Content of the files in a folder."""
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_an_existing_file_needs_proof_or_force(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_text("holiday")
    with pytest.raises(BadInput, match="--force"):
        OutputFile(tmp_path / "x.mp4", proves=lambda path: False)
    for output in (
        OutputFile(tmp_path / "x.mp4", proves=lambda path: False, force=True),
        OutputFile(tmp_path / "x.mp4", proves=lambda path: True),
    ):
        with output.make() as path:
            path.write_text("video")
    assert tree(tmp_path) == {"x.mp4": "video"}


def test_a_file_that_appears_during_the_work_is_not_replaced(tmp_path: Path) -> None:
    output = OutputFile(tmp_path / "x.mp4", proves=lambda path: False)

    def work() -> None:
        with output.make() as path:
            path.write_text("video")
            (tmp_path / "x.mp4").write_text("holiday")

    with pytest.raises(BadInput, match="--force"):
        work()
    assert tree(tmp_path) == {"x.mp4": "holiday"}


def test_a_folder_or_a_pipe_is_no_output_file(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").mkdir()
    os.mkfifo(tmp_path / "y.mp4")
    for name in ("x.mp4", "y.mp4"):
        with pytest.raises(BadInput, match="name a file"):
            OutputFile(tmp_path / name, proves=lambda path: True, force=True)


def test_everybody_may_read_an_output_file(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with OutputFile(tmp_path / "x.mp4", proves=lambda path: True).make() as path:
            path.write_text("video")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.mp4").stat().st_mode) == 0o644
