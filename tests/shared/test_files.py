"""Files are whole or not there, and no path leads out of a folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from fastwan.errors import BadInput
from fastwan.files import confined_file
from fastwan.staging import atomic_file


def run(manager: AbstractContextManager[Path], body: Callable[[Path], None]) -> None:
    with manager as temporary:
        body(temporary)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_the_target_is_not_there_before_the_body_ends(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    with atomic_file(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert names(tmp_path) == ["out.bin"]


def test_folders_above_the_target_are_made(tmp_path: Path) -> None:
    for name in ("first", "second"):  # the second time they are there
        with atomic_file(tmp_path / "a" / "b" / name) as temporary:
            temporary.write_text(name)
        assert (tmp_path / "a" / "b" / name).read_text() == name


def test_the_work_is_done_hidden_beside_the_target(tmp_path: Path) -> None:
    """On another file system a rename would fail; a glob over the folder finds no half of it."""
    with atomic_file(tmp_path / "out.bin") as temporary:
        assert temporary.parent.parent == tmp_path
        assert temporary.parent.name.startswith(".")
        temporary.write_text("whole")


def test_a_relative_target_is_that_of_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with atomic_file(Path("out.bin")) as temporary:
        temporary.write_text("whole")
        os.chdir(tmp_path / "elsewhere")
    assert names(tmp_path) == ["elsewhere", "out.bin"]
    assert names(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_body_that_fails_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        assert names(tmp_path) != []
        raise error

    with pytest.raises(error):
        run(atomic_file(tmp_path / "out.bin"), fail)
    assert names(tmp_path) == []


def test_everybody_may_read_what_was_made(tmp_path: Path) -> None:
    """A temporary file is private at first."""
    before = os.umask(0o077)
    try:
        with atomic_file(tmp_path / "out.bin") as temporary:
            temporary.write_text("whole")
    finally:
        os.umask(before)
    made = tmp_path / "out.bin"
    assert stat.S_IMODE(made.stat().st_mode) == 0o644


def test_a_file_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    target.write_text("old")
    with atomic_file(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert names(tmp_path) == ["out.bin"]


def test_a_writer_sees_the_suffix_of_the_file(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "video.mp4") as temporary:
        assert temporary.suffix == ".mp4"
        temporary.touch()


def test_the_error_of_the_body_is_told_though_its_file_is_gone(tmp_path: Path) -> None:
    def fail(temporary: Path) -> None:
        temporary.unlink(missing_ok=True)
        raise ValueError("half done")

    with pytest.raises(ValueError, match="half done"):
        run(atomic_file(tmp_path / "out"), fail)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to see open files")
def test_no_file_stays_open(tmp_path: Path) -> None:
    before = len(names(Path("/proc/self/fd")))
    for index in range(8):
        with atomic_file(tmp_path / str(index)) as temporary:
            temporary.touch()
    assert len(names(Path("/proc/self/fd"))) == before


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with files, beside a file and a folder that are not to be reached."""
    inside = tmp_path / "bundle"
    (inside / "sub").mkdir(parents=True)
    (inside / "file").write_text("inside")
    (inside / "sub" / "file").write_text("inside")
    (tmp_path / "outside").write_text("outside")
    (inside / "link").symlink_to(tmp_path / "outside")
    (inside / "folder").symlink_to("sub")
    (inside / "to-itself").symlink_to("file")
    os.link(tmp_path / "outside", inside / "hard")
    os.mkfifo(inside / "pipe")
    return inside


@pytest.mark.parametrize("relative", ["file", "sub/file", "./sub/file"])
def test_a_file_of_the_folder_is_found(folder: Path, relative: str) -> None:
    found = confined_file(folder, relative)
    assert found.read_text() == "inside"
    assert found == folder / relative


@pytest.mark.parametrize(
    ("relative", "message"),
    [
        ("{folder}/file", "path points outside its folder"),
        ("../outside", "path points outside its folder"),
        ("../bundle/file", "path points outside its folder"),
        ("sub/../file", "path points outside its folder"),
        ("", "path points outside its folder"),
        (".", "path points outside its folder"),
        ("sub\\file", "path points outside its folder"),
        ("link", "symbolic link in a bundle"),
        ("to-itself", "symbolic link in a bundle"),
        ("folder/file", "symbolic link in a bundle"),
        ("absent", "file is missing"),
        ("sub", "file is missing"),
        ("pipe", "file is missing"),
        ("hard", "hard link in a bundle"),
    ],
)
def test_every_way_out_is_refused(folder: Path, relative: str, message: str) -> None:
    (folder / "sub\\file").write_text("a name that another system reads as a path")
    named = relative.format(folder=folder)
    with pytest.raises(BadInput, match=message) as refused:
        confined_file(folder, named)
    assert refused.value.where == f"bundle/{named}"


def test_a_message_calls_the_folder_what_the_caller_calls_it(folder: Path) -> None:
    with pytest.raises(BadInput) as refused:
        confined_file(folder, "absent", shown="my bundle")
    with pytest.raises(BadInput, match="file is missing"):
        confined_file(folder, "x" * 5000)
    assert refused.value.where == "my bundle/absent"


def test_a_file_that_is_held_against_a_hash_may_have_another_name(folder: Path) -> None:
    assert confined_file(folder, "hard", hard_links=True).read_text() == "outside"
    with pytest.raises(BadInput, match="symbolic link"):
        confined_file(folder, "link", hard_links=True)


def test_a_link_above_the_folder_is_the_users_affair(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to("bundle")
    assert confined_file(tmp_path / "alias", "file").read_text() == "inside"
