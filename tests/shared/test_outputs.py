"""Outputs: nothing of the user's is deleted, nothing half-made is left, a reader finds it whole."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from fastwan import outputs
from fastwan.errors import BadInput, FastWanWarning
from fastwan.outputs import OutputFile, OutputFolder
from fastwan.ownership import RECORD, prove


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))


@pytest.fixture(params=["exchange", "two renames"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of replacing a folder."""
    if request.param == "two renames":
        monkeypatch.setattr(outputs, "exchange", lambda left, right: False)
    return str(request.param)


def make(target: Path, text: str = "new", *, kind: str = "bundle", force: bool = False) -> None:
    with OutputFolder(target, kind, force=force).make() as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text(text)


def tree(folder: Path) -> dict[str, str]:
    """Every entry below a folder: content of files, targets of links, "/" for folders."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_dir():
            found[name] = "/"
        else:
            found[name] = path.read_text()
    return found


def test_a_folder_is_made_with_its_record(tmp_path: Path) -> None:
    make(tmp_path / "a" / "out")
    assert set(tree(tmp_path)) == {
        "a", "a/out", "a/out/sub", "a/out/sub/file", f"a/out/{RECORD}"
    }  # fmt: skip
    proof = prove(tmp_path / "a" / "out")
    assert proof.kind == "bundle"
    assert set(proof.own) == {"sub/file", RECORD}
    assert proof.foreign == ()


def test_an_own_folder_is_replaced(tmp_path: Path, way: str) -> None:
    make(tmp_path / "out", "old")
    make(tmp_path / "out", "new")
    assert tree(tmp_path / "out")["sub/file"] == "new"
    assert os.listdir(tmp_path) == ["out"]


def test_an_empty_folder_is_replaced(tmp_path: Path, way: str) -> None:
    (tmp_path / "out").mkdir()
    make(tmp_path / "out")
    assert tree(tmp_path / "out")["sub/file"] == "new"


def _add(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")


def _add_folder(folder: Path) -> None:
    (folder / "sub" / "photos").mkdir()


def _change(folder: Path) -> None:
    (folder / "sub" / "file").write_text("odl")


def _link(folder: Path) -> None:
    (folder / "sub" / "link").symlink_to("file")


def _link_for_a_file(folder: Path) -> None:
    content = (folder / "sub" / "file").read_text()
    (folder.parent / "mine").write_text(content)
    (folder / "sub" / "file").unlink()
    (folder / "sub" / "file").symlink_to(folder.parent / "mine")


def _no_record(folder: Path) -> None:
    (folder / RECORD).unlink()


def _other_tool(folder: Path) -> None:
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps(record | {"tool": "another"}))


def _deep_record(folder: Path) -> None:
    (folder / RECORD).write_text("[" * 200_000)


FOREIGN = [
    _add, _add_folder, _change, _link, _link_for_a_file, _no_record, _other_tool, _deep_record
]  # fmt: skip


@pytest.mark.parametrize("change", FOREIGN)
def test_a_folder_with_anything_foreign_is_refused_and_untouched(
    tmp_path: Path, change: Callable[[Path], None], way: str
) -> None:
    make(tmp_path / "out", "old")
    change(tmp_path / "out")
    before = tree(tmp_path)
    with pytest.raises(BadInput, match="--force"):
        OutputFolder(tmp_path / "out", "bundle")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("change", FOREIGN)
def test_what_becomes_foreign_during_the_work_is_not_deleted(
    tmp_path: Path, change: Callable[[Path], None], way: str
) -> None:
    make(tmp_path / "out", "old")
    before: dict[str, str] = {}

    def work() -> None:
        with OutputFolder(tmp_path / "out", "bundle").make() as folder:
            (folder / "file").write_text("new")
            change(tmp_path / "out")
            before.update((n, t) for n, t in tree(tmp_path).items() if ".fastwan" not in n)

    with pytest.raises(BadInput, match="--force"):
        work()
    assert before
    assert tree(tmp_path) == before


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "out", kind="checkpoint")
    with pytest.raises(BadInput, match="as a bundle"):
        OutputFolder(tmp_path / "out", "bundle")
    OutputFolder(tmp_path / "out", "checkpoint")


def test_force_replaces_and_tells_what_it_deletes(tmp_path: Path, way: str) -> None:
    make(tmp_path / "out", "old")
    _add(tmp_path / "out")
    output = OutputFolder(tmp_path / "out", "bundle", force=True)
    assert output.doomed() == ("notes.txt",)
    with output.make() as folder:
        (folder / "file").write_text("new")
    assert set(tree(tmp_path / "out")) == {"file", RECORD}


def test_a_failed_run_leaves_what_was_there(tmp_path: Path, way: str) -> None:
    make(tmp_path / "out", "old")
    before = tree(tmp_path)
    with pytest.raises(KeyboardInterrupt), OutputFolder(tmp_path / "out", "bundle").make():
        raise KeyboardInterrupt
    assert tree(tmp_path) == before


def test_a_failed_run_leaves_no_new_parents(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), OutputFolder(tmp_path / "a/b/out", "bundle").make():
        raise KeyboardInterrupt
    assert tree(tmp_path) == {}


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    make(tmp_path / "real", "old")
    (tmp_path / "out").symlink_to("real")
    make(tmp_path / "out", "new")
    assert (tmp_path / "out").is_symlink()
    assert tree(tmp_path / "real")["sub/file"] == "new"


@pytest.mark.parametrize("place", [".", "..", "/"])
def test_the_current_folder_and_those_around_it_are_refused(
    place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="current folder"):
        OutputFolder(Path(place), "bundle", force=True)
    OutputFolder(Path("beside"), "bundle", force=True)


def test_an_output_over_its_input_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "in")
    for inside in (tmp_path / "in", tmp_path / "in" / "sub"):
        with pytest.raises(BadInput, match="input"):
            OutputFolder(tmp_path / "in", "bundle", force=True, inputs=(inside,))
    OutputFolder(tmp_path / "out", "bundle", inputs=(tmp_path / "in",))


def test_every_legal_name_is_taken(tmp_path: Path) -> None:
    make(tmp_path / ("x" * 255))
    with OutputFile(tmp_path / ("y" * 251 + ".mp4"), proves=lambda path: True).make() as path:
        path.write_text("video")
    assert len(os.listdir(tmp_path)) == 2


def test_a_name_that_is_too_long_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="name too long"):
        OutputFolder(tmp_path / ("x" * 256), "bundle")
    with pytest.raises(BadInput, match="name too long"):
        OutputFile(tmp_path / ("y" * 252 + ".mp4"), proves=lambda path: True)


def test_a_file_in_the_way_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BadInput, match="not a folder"):
        OutputFolder(tmp_path / "file", "bundle")
    with pytest.raises(BadInput, match="cannot be written"):
        OutputFolder(tmp_path / "file" / "out", "bundle")
    assert tree(tmp_path) == {"file": "mine"}


def test_a_place_that_cannot_be_written_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object, parent: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(parent))

    OutputFolder(tmp_path / "out", "bundle")
    monkeypatch.setattr(outputs.Staging, "__init__", refuse)
    with pytest.raises(BadInput, match="Read-only"):
        OutputFolder(tmp_path / "out", "bundle")


def test_checking_leaves_nothing(tmp_path: Path) -> None:
    OutputFolder(tmp_path / "a" / "out", "bundle")
    OutputFile(tmp_path / "b" / "x.mp4", proves=lambda path: True)
    assert tree(tmp_path) == {}


def test_a_run_killed_between_two_renames_is_put_right_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "out", "old")
    monkeypatch.setattr(outputs, "exchange", lambda left, right: False)
    rename, calls = os.rename, []

    class Killed(BaseException):
        pass

    def killed(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) > 1:
            raise Killed
        rename(source, target)

    monkeypatch.setattr(outputs.os, "rename", killed)
    monkeypatch.setattr(outputs.Staging, "remove", outputs.Staging.release)
    with pytest.raises(Killed):
        make(tmp_path / "out", "new")
    monkeypatch.undo()
    monkeypatch.chdir("/")
    assert not (tmp_path / "out").exists()
    make(tmp_path / "other")
    assert tree(tmp_path / "out")["sub/file"] == "old"
    assert sorted(os.listdir(tmp_path)) == ["other", "out"]


def test_a_reader_finds_a_whole_folder_at_every_moment(tmp_path: Path) -> None:
    make(tmp_path / "out", "0")
    stop, seen, failed = threading.Event(), set(), []

    def read() -> None:
        while not stop.is_set():
            try:
                handle = os.open(tmp_path / "out", os.O_RDONLY)
                seen.add(os.fstat(handle).st_ino)
                os.close(handle)
            except OSError as error:
                failed.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(60):
        make(tmp_path / "out", str(number))
    stop.set()
    reader.join()
    assert failed == []
    assert len(seen) > 1


def test_runs_into_one_output_end_in_one_whole_folder(tmp_path: Path) -> None:
    failed = []

    def run(text: str) -> None:
        try:
            make(tmp_path / "out", text)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(str(n),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert os.listdir(tmp_path) == ["out"]
    assert prove(tmp_path / "out").foreign == ()


def _becomes_a_file(target: Path) -> None:
    target.write_text("mine")


def _becomes_a_link(target: Path) -> None:
    make(target.with_name("real"), "old")
    target.symlink_to("real")


@pytest.mark.parametrize("become", [_becomes_a_file, _becomes_a_link])
def test_what_becomes_no_folder_during_the_work_stays(
    tmp_path: Path, become: Callable[[Path], None], way: str
) -> None:
    before: dict[str, str] = {}

    def work() -> None:
        with OutputFolder(tmp_path / "out", "bundle", force=True).make():
            become(tmp_path / "out")
            before.update((n, t) for n, t in tree(tmp_path).items() if ".fastwan" not in n)

    with pytest.raises(BadInput, match="not a folder any more"):
        work()
    assert tree(tmp_path) == before


def test_a_file_that_comes_while_the_old_folder_is_removed_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "out", "old")
    remove = outputs.remove_own

    def written_to(folder: Path, own: Iterable[str]) -> None:
        (folder / "late.txt").write_text("mine")
        remove(folder, own)

    monkeypatch.setattr(outputs, "remove_own", written_to)
    with pytest.warns(FastWanWarning, match="were added to"):
        make(tmp_path / "out", "new")
    assert tree(tmp_path / "out")["sub/file"] == "new"
    (kept,) = tmp_path.glob("kept*")
    assert tree(kept) == {"late.txt": "mine"}
