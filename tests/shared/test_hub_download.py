"""Downloads that a signal ends, and what killed ones left."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fastwan.hub.cache import CachedRepository
from fastwan.hub.download import download, sweep
from fastwan.hub.repository import open_repository
from testkit import stand_in_hub
from testkit.stand_in_hub import COMMITS, REPO, StandInHub

huggingface_hub = pytest.importorskip("huggingface_hub")
filelock = pytest.importorskip("filelock")

COMMIT = COMMITS[0]
FILES = {"a": b"1", "[b]*?": b"2", "b": b"3"}
_PATIENCE = 60
"""Seconds within which a signal reaches the main thread, however busy the machine is."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandInHub]:
    stand_in = StandInHub({COMMIT: FILES}, {"main": COMMIT})
    with stand_in_hub.serve(stand_in) as address:
        stand_in_hub.use(monkeypatch, address, tmp_path / "hub")
        yield stand_in


def test_the_files_named_are_fetched_and_no_others(hub: StandInHub, tmp_path: Path) -> None:
    download(REPO, COMMIT, ["[b]*?"])
    assert CachedRepository(tmp_path / "hub", REPO).fetched(COMMIT).keys() == {"[b]*?"}


def functions_of_the_main_thread() -> list[str]:
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    return [each.f_code.co_name for each, _ in traceback.walk_stack(frame)]


def _next_piece(options: dict[str, Any]) -> None:
    options["tqdm_class"](disable=True).update(1)


def _next_request(options: dict[str, Any]) -> None:
    huggingface_hub.HfApi().model_info(REPO)


@pytest.mark.parametrize("step", [_next_piece, _next_request])
@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupted_download_ends_with_its_next_step(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch, step: Callable[[dict[str, Any]], None]
) -> None:
    ended: list[str] = []

    def endless(*args: object, **options: Any) -> None:
        while "result" not in functions_of_the_main_thread():
            step(options)  # goes well as long as nobody interrupts
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        try:
            end = time.monotonic() + _PATIENCE
            while time.monotonic() < end:
                step(options)
            ended.append("by itself")
        except Exception as error:
            ended.append(type(error).__name__)
            raise

    monkeypatch.setattr(huggingface_hub, "snapshot_download", endless)
    with pytest.raises(KeyboardInterrupt):
        download(REPO, COMMIT, ["a"])
    assert ended == ["_Stopped"]
    monkeypatch.undo()


def test_the_hub_is_asked_again_after_an_interrupted_download(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub, "snapshot_download", interrupted)
        with pytest.raises(KeyboardInterrupt):
            download(REPO, COMMIT, ["a"])
    assert (open_repository(REPO).get(["a"]) / "a").read_bytes() == b"1"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "hub" / "models--owner--name"
    (folder / "blobs").mkdir(parents=True)
    (tmp_path / "hub" / ".locks" / folder.name).mkdir(parents=True)
    return folder


def left(repository: Path, name: str, age: float) -> Path:
    path = repository / "blobs" / name
    path.write_bytes(b"half")
    now = time.time()
    os.utime(path, (now - age, now - age))
    return path


def test_what_a_killed_download_left_is_removed(repository: Path) -> None:
    path = left(repository, "e7a6.01234567.incomplete", 7200)
    kept = [
        left(repository, "e7a6", 7200),
        left(repository, "e7a6.incomplete", 7200),  # an older library goes on with it
        left(repository, "e7a6.0123456.incomplete", 7200),
        left(repository, "e7a6.01234567.incomplete.more", 7200),
        left(repository, "e7a6.89abcdef.incomplete", 60),
    ]
    outside = repository / "outside"
    outside.write_bytes(b"kept")
    os.utime(outside, (0, 0))
    (repository / "blobs" / "link.01234567.incomplete").symlink_to(outside)
    (repository / "blobs" / "folder.01234567.incomplete").mkdir()
    sweep(repository)
    assert not path.exists()
    assert all(each.exists() for each in [*kept, outside])
    assert len(os.listdir(repository / "blobs")) == len(kept) + 2


def test_a_download_that_goes_on_is_left_alone(repository: Path) -> None:
    path = left(repository, "e7a6.01234567.incomplete", 7200)
    lock = repository.parent / ".locks" / repository.name / "e7a6.lock"
    with filelock.FileLock(lock):
        sweep(repository)
        assert path.exists()
    sweep(repository)
    assert not path.exists()


def test_a_repository_that_is_not_there_is_swept(tmp_path: Path) -> None:
    sweep(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []
