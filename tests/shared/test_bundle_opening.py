"""A bundle stays the one that was opened; a file that does not fit is noticed, and which."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastwan.bundle import open_bundle
from fastwan.errors import BadInput, FastWanError, VerificationFailed
from fastwan.held_folder import is_held
from fastwan.manifest import MANIFEST
from fastwan.outputs import OutputFolder
from fastwan.staging import PREFIX
from testkit.manifests import write_manifest


def fill(folder: Path, text: str) -> None:
    """Write a bundle of three small files, whose content depends on `text`."""
    names = ("layers.json", "onnx/a.onnx", "dit/a.engine")
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}" if name == "layers.json" else f"{name} {text}")
    write_manifest(folder, tool_version=text, attention="native")


def publish(target: Path, text: str) -> None:
    with OutputFolder(target, "bundle").make() as folder:
        fill(folder, text)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    publish(tmp_path / "bundle", "0")
    return tmp_path / "bundle"


def test_a_reader_never_fails_while_the_bundle_is_replaced(bundle: Path) -> None:
    stop = threading.Event()
    seen: list[str] = []
    failed: list[BaseException] = []

    def read() -> None:
        while not stop.is_set():
            try:
                opened = open_bundle(bundle)
                for name in opened.manifest.files:
                    text = opened.read(name).decode()
                    assert text in ("{}", f"{name} {opened.manifest.tool_version}")
                seen.append(opened.manifest.tool_version)
            except BaseException as error:
                failed.append(error)
                return

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(1, 151):
        publish(bundle, str(number))
    stop.set()
    for reader in readers:
        reader.join()
    assert failed == []
    assert len(set(seen)) > 1
    publish(bundle, "last")  # also removes what readers had kept
    assert os.listdir(bundle.parent) == ["bundle"]


def test_an_opened_bundle_is_read_to_its_end_after_another_took_its_place(bundle: Path) -> None:
    opened = open_bundle(bundle)
    publish(bundle, "1")
    assert opened.read("dit/a.engine") == b"dit/a.engine 0"
    assert opened.file("onnx/a.onnx").read_text() == "onnx/a.onnx 0"
    assert open_bundle(bundle).read("dit/a.engine") == b"dit/a.engine 1"
    (left,) = (name for name in os.listdir(bundle.parent) if name.startswith(PREFIX))
    assert is_held(bundle.parent / left / "old")
    del opened
    publish(bundle, "2")
    assert os.listdir(bundle.parent) == ["bundle"]


def _missing(path: Path) -> None:
    path.unlink()


def _longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def _shorter(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _link(path: Path) -> None:
    shutil.move(path, path.parent.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent.parent / "elsewhere")


@pytest.mark.parametrize("name", ["dit/a.engine", "onnx/a.onnx"])
@pytest.mark.parametrize("damage", [_missing, _longer, _shorter, _pipe, _folder, _link])
def test_a_file_that_does_not_fit_is_named_when_the_bundle_is_opened(
    bundle: Path, damage: Callable[[Path], None], name: str
) -> None:
    open_bundle(bundle)
    damage(bundle / name)
    with pytest.raises((BadInput, VerificationFailed)) as caught:
        open_bundle(bundle)
    assert name in str(caught.value)
    open_bundle(bundle, sizes=False)


def test_a_file_of_the_same_size_is_noticed_before_it_is_used(bundle: Path) -> None:
    path = bundle / "dit" / "a.engine"
    path.write_bytes(path.read_bytes().replace(b"0", b"1"))
    opened = open_bundle(bundle)
    uses: list[Callable[[str], Any]] = [opened.read, opened.file]
    for use in uses:
        with pytest.raises(VerificationFailed, match=r"dit/a\.engine"):
            use("dit/a.engine")
        use("onnx/a.onnx")


def test_what_is_read_is_what_was_hashed(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.read("dit/a.engine") == b"dit/a.engine 0"
    (bundle / "dit" / "a.engine").write_text("dit/a.engine 1")
    with pytest.raises(VerificationFailed):
        opened.read("dit/a.engine")


def test_messages_name_the_folder_that_the_user_named(bundle: Path) -> None:
    (bundle / MANIFEST).write_text("{}")
    with pytest.raises(FastWanError) as caught:
        open_bundle(bundle)
    assert str(bundle) in str(caught.value)
    assert "/proc" not in str(caught.value)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_bundle_with_a_hard_linked_backup_opens_and_is_checked(
    bundle: Path, tmp_path: Path, damaged: bool
) -> None:
    shutil.copytree(bundle, tmp_path / "backup", copy_function=os.link)
    if damaged:  # through the other name
        path = tmp_path / "backup" / "dit" / "a.engine"
        path.write_bytes(path.read_bytes()[::-1])
    opened = open_bundle(bundle)
    if damaged:
        with pytest.raises(VerificationFailed, match=r"dit/a\.engine"):
            opened.read("dit/a.engine")
    else:
        assert {name: opened.read(name) for name in opened.manifest.files}
