"""Which links of the hub's cache count as files, and that no other does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fastwan.errors import BadInput
from fastwan.files import confined_file

NAME = "onnx/dit.data"
BLOB = "a" * 64
OTHER = "b" * 64


class Cache:
    """A hub's cache with one repository, one snapshot and one file in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.repository = root / "models--owner--name"
        self.snapshot = self.repository / "snapshots" / "0123"
        self.link = self.snapshot / NAME
        self.blob = self.repository / "blobs" / BLOB
        self.blob.parent.mkdir(parents=True)
        self.link.parent.mkdir(parents=True)
        self.blob.write_text("content")
        (self.repository / "blobs" / OTHER).write_text("other")
        (root / "outside").write_text("outside")
        (self.snapshot / "onnx" / "beside").write_text("beside")
        for other in ("models--owner--other/blobs", "models--owner--name/blobs/sub", "blobs/aa"):
            (root / other).mkdir(parents=True)
            (root / other / BLOB).write_text("elsewhere")
        self.relink(f"../../../blobs/{BLOB}")

    def relink(self, text: str | Path) -> None:
        self.link.unlink(missing_ok=True)
        self.link.symlink_to(text)

    def share(self, name: str = BLOB, prefix: str = "aa", place: str = "../../blobs") -> None:
        """Have the blob be a link into the store that all repositories share."""
        store = self.root / "blobs" / prefix
        store.mkdir(parents=True, exist_ok=True)
        os.replace(self.blob, store / name)
        self.blob.symlink_to(f"{place}/{prefix}/{name}")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "hub")


def test_a_link_to_the_repositorys_own_blob_is_its_file(cache: Cache) -> None:
    found = confined_file(cache.snapshot, NAME)
    assert found == cache.snapshot / NAME
    assert found.read_text() == "content"
    assert confined_file(cache.snapshot / "onnx", "dit.data").read_text() == "content"


def test_a_blob_in_the_shared_store_is_its_file(cache: Cache) -> None:
    """As huggingface_hub lays out what Xet storage holds, since version 2."""
    cache.share()
    assert confined_file(cache.snapshot, NAME).read_text() == "content"


def test_the_cache_may_lie_behind_links(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(cache.snapshot)
    (tmp_path / "moved").symlink_to(cache.root)
    for folder in (tmp_path / "alias", tmp_path / "moved" / cache.snapshot.relative_to(cache.root)):
        assert confined_file(folder, NAME).read_text() == "content"


def test_a_copied_cache_opens(cache: Cache, tmp_path: Path) -> None:
    """Links are relative: nothing leads back to where it was."""
    shutil.move(cache.root, tmp_path / "elsewhere")
    moved = tmp_path / "elsewhere" / cache.snapshot.relative_to(cache.root)
    assert confined_file(moved, NAME).read_text() == "content"


def _relinked(text: str) -> Callable[[Cache], None]:
    return lambda cache: cache.relink(text.format(root=cache.root, blob=BLOB, other=OTHER))


def _blob_is(make: Callable[[Path, Cache], object]) -> Callable[[Cache], None]:
    def change(cache: Cache) -> None:
        cache.blob.unlink()
        make(cache.blob, cache)

    return change


def _blobs_elsewhere(cache: Cache) -> None:
    shutil.move(cache.blob.parent, cache.root / "elsewhere")
    cache.blob.parent.symlink_to(cache.root / "elsewhere")


def _snapshots_elsewhere(cache: Cache) -> None:
    """The same links in a folder that is no snapshot of a repository."""
    cache.repository.rename(cache.root / "name")
    cache.repository.symlink_to("name")


def _through_a_link(cache: Cache) -> None:
    """A text that ends in the blobs by its letters, and elsewhere by the links in it."""
    deep = cache.root / "x" / "y" / "z"
    deep.mkdir(parents=True)
    (cache.root / "x" / "blobs").mkdir()
    (cache.root / "x" / "blobs" / BLOB).write_text("outside")
    (cache.snapshot / "onnx" / "by").symlink_to(deep)
    cache.relink(f"by/../../../../blobs/{BLOB}")


def _store_elsewhere(cache: Cache) -> None:
    cache.share()
    shutil.move(cache.root / "blobs", cache.root / "elsewhere")
    (cache.root / "blobs").symlink_to("elsewhere")


def _prefix_elsewhere(cache: Cache) -> None:
    cache.share()
    shutil.move(cache.root / "blobs" / "aa", cache.root / "elsewhere")
    (cache.root / "blobs" / "aa").symlink_to("../elsewhere")


def _shared_and_linked(cache: Cache) -> None:
    cache.share()
    shared = cache.root / "blobs" / "aa" / BLOB
    shared.unlink()
    shared.symlink_to("../../outside")


WAYS_OUT: dict[str, Callable[[Cache], None]] = {
    "out of the cache": _relinked("../../../../../outside"),
    "an absolute path": _relinked("{root}/models--owner--name/blobs/{blob}"),
    "an absolute path outside": _relinked("{root}/outside"),
    "a device": _relinked("/dev/zero"),
    "another repository": _relinked("../../../../models--owner--other/blobs/{blob}"),
    "another file of the snapshot": _relinked("beside"),
    "the store without the repository": _relinked("../../../../blobs/aa/{blob}"),
    "a longer way": _relinked("../../../blobs/../blobs/{blob}"),
    "a dot in the way": _relinked("../../.././blobs/{blob}"),
    "two slashes": _relinked("../../..//blobs/{blob}"),
    "a folder below blobs": _relinked("../../../blobs/sub/{blob}"),
    "blobs itself": _relinked("../../../blobs"),
    "above blobs": _relinked("../../../blobs/.."),
    "nothing": _relinked("../../../blobs/absent"),
    "through a link": _through_a_link,
    "a blob that is a link": _blob_is(lambda blob, cache: blob.symlink_to(OTHER)),
    "a blob that leads out": _blob_is(lambda blob, cache: blob.symlink_to("../../outside")),
    "a blob that is a pipe": _blob_is(lambda blob, cache: os.mkfifo(blob)),
    "a blob that is a folder": _blob_is(lambda blob, cache: blob.mkdir()),
    "a blob that is itself": _blob_is(lambda blob, cache: blob.symlink_to(BLOB)),
    "a link for blobs": _blobs_elsewhere,
    "no repository of the hub": _snapshots_elsewhere,
    "a shared blob of another name": lambda cache: cache.share("x" * 64, "xx"),
    "a shared blob under another letter": lambda cache: cache.share(BLOB, "ab"),
    "a shared blob by a longer way": lambda cache: cache.share(place="../../blobs/../blobs"),
    "a link for the store": _store_elsewhere,
    "a link in the store": _prefix_elsewhere,
    "a shared blob that leads out": _shared_and_linked,
}


@pytest.mark.parametrize("way", WAYS_OUT)
def test_any_other_link_is_refused(cache: Cache, way: str) -> None:
    WAYS_OUT[way](cache)
    assert cache.link.is_symlink()
    with pytest.raises(BadInput, match="symbolic link in a bundle"):
        confined_file(cache.snapshot, NAME)


def test_a_link_in_place_of_a_folder_is_refused(cache: Cache) -> None:
    shutil.move(cache.snapshot / "onnx", cache.repository / "blobs" / "folder")
    (cache.snapshot / "onnx").symlink_to("../../blobs/folder")
    with pytest.raises(BadInput, match="symbolic link in a bundle"):
        confined_file(cache.snapshot, NAME)


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_is_none_in_a_snapshot(cache: Cache, kind: str) -> None:
    cache.link.unlink()
    if kind == "pipe":
        os.mkfifo(cache.link)
    else:
        cache.link.mkdir()
    with pytest.raises(BadInput, match="file is missing"):
        confined_file(cache.snapshot, NAME)
