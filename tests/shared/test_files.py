"""Files and folders are whole or not there, and no path leads out of a folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from fastwan.errors import BadInput
from fastwan.files import atomic_dir, atomic_file, confined_file

MARKER = "mark"
Atomic = Callable[[Path], AbstractContextManager[Path]]


def make(target: Path, text: str) -> None:
    """Make a folder with a marker and a file that holds `text`."""
    with atomic_dir(target, replace_marker=MARKER) as folder:
        (folder / MARKER).touch()
        (folder / "file").write_text(text)


def run(manager: AbstractContextManager[Path], body: Callable[[Path], None]) -> None:
    with manager as temporary:
        body(temporary)


def unreached(_: Path) -> None:
    pytest.fail("the work was begun")


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def write(path: Path, text: str) -> None:
    """Fill what `atomic_dir` or `atomic_file` yields."""
    (path / "file" if path.is_dir() else path).write_text(text)


def read(path: Path) -> str:
    return (path / "file" if path.is_dir() else path).read_text()


@pytest.fixture(params=[atomic_dir, atomic_file])
def atomic(request: pytest.FixtureRequest) -> Atomic:
    """Both, for what they promise alike."""
    made: Atomic = request.param
    return made


def test_the_target_is_not_there_before_the_body_ends(atomic: Atomic, tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    with atomic(target) as temporary:
        write(temporary, "whole")
        assert not target.exists()
    assert read(target) == "whole"
    assert names(tmp_path) == ["out.bin"]


def test_folders_above_the_target_are_made(atomic: Atomic, tmp_path: Path) -> None:
    for name in ("first", "second"):  # the second time they are there
        with atomic(tmp_path / "a" / "b" / name) as temporary:
            write(temporary, name)
        assert read(tmp_path / "a" / "b" / name) == name


def test_the_work_is_done_hidden_beside_the_target(atomic: Atomic, tmp_path: Path) -> None:
    """On another file system a rename would fail; a glob over the folder finds no half of it."""
    with atomic(tmp_path / "out.bin") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".out.")
        write(temporary, "whole")


def test_a_relative_target_is_that_of_the_beginning(
    atomic: Atomic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with atomic(Path("out.bin")) as temporary:
        write(temporary, "whole")
        os.chdir(tmp_path / "elsewhere")
    assert names(tmp_path) == ["elsewhere", "out.bin"]
    assert names(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_body_that_fails_leaves_nothing(
    atomic: Atomic, tmp_path: Path, error: type[BaseException]
) -> None:
    def fail(temporary: Path) -> None:
        write(temporary, "half")
        assert names(tmp_path) != []
        raise error

    with pytest.raises(error):
        run(atomic(tmp_path / "out.bin"), fail)
    assert names(tmp_path) == []


def test_everybody_may_read_what_was_made(atomic: Atomic, tmp_path: Path) -> None:
    """A temporary file or folder is private at first."""
    before = os.umask(0o077)
    try:
        with atomic(tmp_path / "out.bin") as temporary:
            write(temporary, "whole")
    finally:
        os.umask(before)
    made = tmp_path / "out.bin"
    assert stat.S_IMODE(made.stat().st_mode) == (0o755 if made.is_dir() else 0o644)


def test_a_folder_with_the_marker_is_replaced_whole(tmp_path: Path) -> None:
    make(tmp_path / "out", "old")
    (tmp_path / "out" / "more").touch()
    make(tmp_path / "out", "new")
    assert names(tmp_path / "out") == ["file", MARKER]
    assert read(tmp_path / "out") == "new"
    assert names(tmp_path) == ["out"]


def test_an_empty_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with atomic_dir(tmp_path / "out") as folder:
        write(folder, "new")
    assert read(tmp_path / "out") == "new"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("marker", [MARKER, None])
def test_somebodys_folder_is_refused_before_the_work(tmp_path: Path, marker: str | None) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("somebody's")
    with pytest.raises(BadInput, match="exists and was not made by this tool"):
        run(atomic_dir(tmp_path / "out", replace_marker=marker), unreached)
    assert read(tmp_path / "out") == "somebody's"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("theirs", ["file", MARKER])
def test_a_folder_that_appears_meanwhile_is_replaced_by_the_same_rule(
    tmp_path: Path, theirs: str
) -> None:
    def meanwhile(folder: Path) -> None:
        write(folder, "new")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / theirs).write_text("theirs")

    manager = atomic_dir(tmp_path / "out", replace_marker=MARKER)
    if theirs == MARKER:
        run(manager, meanwhile)
        assert read(tmp_path / "out") == "new"
    else:
        with pytest.raises(BadInput, match="exists and was not made by this tool"):
            run(manager, meanwhile)
        assert read(tmp_path / "out") == "theirs"
    assert names(tmp_path) == ["out"]


def a_file(target: Path) -> None:
    target.write_text("somebody's")


def a_link(target: Path) -> None:
    make(target.parent / "elsewhere", "old")  # which alone might be replaced
    target.symlink_to("elsewhere")


def a_dangling_link(target: Path) -> None:
    target.symlink_to("nowhere")


@pytest.mark.parametrize("there", [a_file, a_link, a_dangling_link])
def test_a_target_that_is_no_folder_is_refused(
    tmp_path: Path, there: Callable[[Path], None]
) -> None:
    target = tmp_path / "out"
    there(target)
    before = names(tmp_path)
    with pytest.raises(BadInput, match="output is not a folder"):
        run(atomic_dir(target, replace_marker=MARKER), unreached)
    assert names(tmp_path) == before
    assert target.is_symlink() == (there is not a_file)


def test_a_failed_body_leaves_the_old_folder(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        write(folder, "new")
        raise ValueError("half done")

    make(tmp_path / "out", "old")
    with pytest.raises(ValueError, match="half done"):
        run(atomic_dir(tmp_path / "out", replace_marker=MARKER), fail)
    assert read(tmp_path / "out") == "old"
    assert names(tmp_path) == ["out"]


def test_at_every_moment_a_whole_folder_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "out", "old")
    rename, seen = os.rename, []

    def watched(source: Path, target: Path) -> None:
        rename(source, target)
        seen.append({path.read_text() for path in tmp_path.rglob("file")})

    monkeypatch.setattr(os, "rename", watched)
    make(tmp_path / "out", "new")
    assert seen == [{"old", "new"}] * 2


def test_a_file_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    target.write_text("old")
    with atomic_file(target) as temporary:
        write(temporary, "new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert names(tmp_path) == ["out.bin"]


def test_a_writer_sees_the_suffix_of_the_file(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "video.mp4") as temporary:
        assert temporary.suffix == ".mp4"


def test_the_error_of_the_body_is_told_though_its_file_is_gone(tmp_path: Path) -> None:
    def fail(temporary: Path) -> None:
        temporary.unlink()
        raise ValueError("half done")

    with pytest.raises(ValueError, match="half done"):
        run(atomic_file(tmp_path / "out"), fail)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to see open files")
def test_no_file_stays_open(tmp_path: Path) -> None:
    before = len(names(Path("/proc/self/fd")))
    for index in range(8):
        with atomic_file(tmp_path / str(index)):
            pass
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


def test_a_link_above_the_folder_is_the_users_affair(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to("bundle")
    assert confined_file(tmp_path / "alias", "file").read_text() == "inside"
