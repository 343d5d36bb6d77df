"""Staging folders: gone afterwards, and those of killed runs recognised by their owner's lock."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastwan.staging import LOCK, PREFIX, Staging, made_folders, staging, sweep

OWNER = """
import sys, time
from pathlib import Path
from fastwan.staging import Staging

stage = Staging(Path(sys.argv[1]))
(stage.folder / "half").write_text("half")
print(stage.folder.name, flush=True)
time.sleep(600)
"""


@pytest.fixture
def owner(tmp_path: Path) -> subprocess.Popen[str]:
    """A process that holds a staging folder in `tmp_path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith(PREFIX)
    yield process  # type: ignore[misc]
    process.kill()
    process.wait()
    process.stdout.close()


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_staging_folder_is_gone_afterwards(tmp_path: Path) -> None:
    with staging(tmp_path) as folder:
        (folder / "file").write_text("x")
        assert names(tmp_path) == [folder.name]
    assert names(tmp_path) == []


def test_it_is_gone_after_an_interrupt_with_the_parents_that_were_made(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), staging(tmp_path / "a" / "b"):
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_parents_that_were_there_or_are_in_use_stay(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()

    def work() -> None:
        with made_folders(tmp_path / "a" / "b" / "c"):
            (tmp_path / "a" / "b" / "mine").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert names(tmp_path / "a") == ["b"]
    assert names(tmp_path / "a" / "b") == ["mine"]


def test_the_folder_of_a_living_owner_stays(owner: subprocess.Popen[str], tmp_path: Path) -> None:
    sweep(tmp_path)
    assert len(names(tmp_path)) == 1


def test_the_folder_of_a_killed_owner_goes(owner: subprocess.Popen[str], tmp_path: Path) -> None:
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    with staging(tmp_path) as folder:
        assert names(tmp_path) == [folder.name]
    assert names(tmp_path) == []


def released(parent: Path) -> Path:
    """A staging folder whose owner is gone."""
    stage = Staging(parent)
    stage.release()
    return stage.folder


def test_a_released_folder_is_swept(tmp_path: Path) -> None:
    released(tmp_path)
    sweep(tmp_path)
    assert names(tmp_path) == []


def _copied(folder: Path) -> None:
    shutil.copytree(folder, folder.with_name(f"{PREFIX}copy"))
    shutil.rmtree(folder)


def _other_tool(folder: Path) -> None:
    record = json.loads((folder / LOCK).read_text())
    (folder / LOCK).write_text(json.dumps(record | {"tool": "another"}))


def _no_lock(folder: Path) -> None:
    (folder / LOCK).unlink()
    (folder / "mine").write_text("x")


def _empty_lock(folder: Path) -> None:
    (folder / LOCK).write_text("")
    (folder / "mine").write_text("x")


def _pipe(folder: Path) -> None:
    (folder / LOCK).unlink()
    os.mkfifo(folder / LOCK)


def _garbage(folder: Path) -> None:
    (folder / LOCK).write_text("[" * 3000)


def _other_name(folder: Path) -> None:
    folder.rename(folder.with_name("mine"))


@pytest.mark.parametrize(
    "change", [_copied, _other_tool, _no_lock, _empty_lock, _pipe, _garbage, _other_name]
)
def test_a_folder_that_is_not_proven_stays(tmp_path: Path, change: object) -> None:
    folder = released(tmp_path)
    assert callable(change)
    change(folder)
    sweep(tmp_path)
    assert len(names(tmp_path)) == 1


@pytest.mark.parametrize("locked", [True, False])
def test_a_folder_whose_owner_was_killed_before_it_signed_goes(
    tmp_path: Path, locked: bool
) -> None:
    folder = released(tmp_path)
    (folder / LOCK).unlink()
    if locked:
        (folder / LOCK).touch()
    sweep(tmp_path)
    assert names(tmp_path) == []


def test_a_folder_that_is_taken_for_a_leftover_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, swept = Path.mkdir, []

    def make_and_sweep(path: Path, mode: int = 0o777) -> None:
        make(path, mode)
        if not swept:
            swept.append(path.name)
            sweep(tmp_path)

    monkeypatch.setattr(Path, "mkdir", make_and_sweep)
    stage = Staging(tmp_path)
    assert names(tmp_path) == [stage.folder.name]
    assert swept != [stage.folder.name]
    sweep(tmp_path)
    assert names(tmp_path) == [stage.folder.name]
    stage.remove()


def test_a_lock_file_is_whole_at_every_moment(tmp_path: Path) -> None:
    stage = Staging(tmp_path)
    stage.note(target="a folder with a long name")
    long = (stage.folder / LOCK).read_bytes()
    stage.note()
    assert len((stage.folder / LOCK).read_bytes()) == len(long)
    stage.release()
    sweep(tmp_path)
    assert names(tmp_path) == []


def test_a_link_to_a_staging_folder_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    folder = released(elsewhere)
    here = tmp_path / "here"
    here.mkdir()
    (here / f"{PREFIX}link").symlink_to(folder)
    sweep(here)
    assert folder.is_dir()
