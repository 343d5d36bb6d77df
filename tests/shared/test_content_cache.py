"""The content cache: what comes back is what was stored, or nothing does."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest

from fastwan import content_cache
from fastwan.cache_entry import Record, StoredFile
from fastwan.content_cache import ContentCache
from fastwan.errors import FastWanWarning


def key(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


A, B = key("a"), key("b")
CONTENTS = {"engine.plan": b"plan" * 1000, "b": b"", "graph.onnx": bytes(range(256))}
NOTE = {"layers": [1, "é", None], "nested": {"x": 0.1}}


@pytest.fixture
def cache(tmp_path: Path) -> ContentCache:
    return ContentCache("engines", tmp_path)


def entry(root: Path, name: str = A, kind: str = "engines") -> Path:
    return root / kind / name


def names(root: Path, kind: str = "engines") -> set[str]:
    """Keys that have an entry."""
    return {path.name for path in (root / kind).iterdir()} - {".tmp"}


def test_contents_and_note_come_back(cache: ContentCache, tmp_path: Path) -> None:
    assert cache.read(A) is None
    stored = cache.put(A, CONTENTS, NOTE)
    assert cache.read(A) == (CONTENTS, NOTE)
    out = tmp_path / "out"
    out.mkdir()
    assert cache.copy(A, out.joinpath) == stored
    assert {path.name: path.read_bytes() for path in out.iterdir()} == CONTENTS
    assert cache.read(B) is None


def test_a_note_keeps_its_order(cache: ContentCache) -> None:
    cache.put(A, {"z": b"", "a": b""}, {"z": 1, "a": {"y": 1, "b": 2}})
    contents, note = cache.read(A) or ({}, {})
    assert [*contents, *note, *note["a"]] == ["z", "a", "z", "a", "y", "b"]


def test_a_file_is_stored_by_its_path(cache: ContentCache, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"content" * 1_000_000)
    cache.put(A, {"x": source, "y": memoryview(b"view")}, {})
    source.write_bytes(b"changed")
    assert cache.read(A) == ({"x": b"content" * 1_000_000, "y": b"view"}, {})


def test_an_entry_that_is_there_stays_unless_it_is_replaced(cache: ContentCache) -> None:
    cache.put(A, {"x": b"1"}, {})
    cache.put(A, {"x": b"2"}, {})
    assert cache.read(A) == ({"x": b"1"}, {})
    cache.put(A, {"x": b"3"}, {}, replace=True)
    assert cache.read(A) == ({"x": b"3"}, {})


@pytest.mark.parametrize("code", [errno.ENOTEMPTY, errno.EEXIST, errno.EIO])
def test_who_publishes_second_has_nothing_to_say(
    cache: ContentCache, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """The entry that was in the way may be gone again when the error is looked at."""

    def in_the_way(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(content_cache.os, "rename", in_the_way)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        stored = cache.put(A, CONTENTS, NOTE)
    assert (len(said), stored is None) == ((1, True) if code == errno.EIO else (0, False))


def test_kinds_are_kept_apart(tmp_path: Path) -> None:
    ContentCache("engines", tmp_path).put(A, {"x": b"1"}, {})
    other = ContentCache("exports", tmp_path)
    assert other.read(A) is None
    shutil.copytree(entry(tmp_path), entry(tmp_path, kind="exports"))
    assert other.read(A) is None


@pytest.mark.parametrize("bad", ["../x", "a/b", "record.json", "", ".hidden", "a\nb"])
def test_names_of_files_are_plain(cache: ContentCache, bad: str) -> None:
    with pytest.raises(ValueError, match="not names"):
        cache.put(A, {bad: b""}, {})
    assert cache.put(A, {"good-name_1.x": b""}, {}) is not None


@pytest.mark.parametrize("bad", ["", "a", A[:-1], A.upper(), "../" + A, A + "/"])
def test_keys_are_hashes(cache: ContentCache, bad: str) -> None:
    with pytest.raises(ValueError, match="hex SHA-256"):
        cache.read(bad)


def flip(folder: Path) -> None:
    data = bytearray((folder / "engine.plan").read_bytes())
    data[2000] ^= 1
    (folder / "engine.plan").write_bytes(data)


def test_a_copy_that_cannot_be_written_is_the_callers_error(
    cache: ContentCache, tmp_path: Path
) -> None:
    cache.put(A, CONTENTS, NOTE)
    with pytest.raises(FileNotFoundError):
        cache.copy(A, (tmp_path / "absent").joinpath)
    assert cache.read(A) is not None


def test_a_copy_that_fails_leaves_no_files(
    cache: ContentCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.put(A, CONTENTS, NOTE)
    out = tmp_path / "out"
    out.mkdir()

    def interrupted(path: Path, file: StoredFile) -> Any:
        if path.name == "graph.onnx":
            raise KeyboardInterrupt
        yield path.read_bytes()

    monkeypatch.setattr(content_cache, "file_chunks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.copy(A, out.joinpath)
    assert list(out.iterdir()) == []
    assert names(tmp_path) == {A}


# Room.


def used(root: Path, name: str, second: int) -> None:
    os.utime(entry(root, name) / "record.json", (second, second))


def test_the_entries_used_longest_ago_make_room(tmp_path: Path) -> None:
    cache = ContentCache("engines", tmp_path)
    for second, name in enumerate("abc"):
        cache.put(key(name), {"x": bytes(1000)}, {})
        used(tmp_path, key(name), second)
    size = sum(file.stat().st_size for file in entry(tmp_path).iterdir())
    assert cache.read(key("a")) is not None  # and so it was used last
    small = ContentCache("engines", tmp_path, max_bytes=3 * size)
    small.put(key("d"), {"x": bytes(1000)}, {})
    assert names(tmp_path) == {key(name) for name in "acd"}


def test_all_kinds_share_the_room(tmp_path: Path) -> None:
    engines, exports = (ContentCache(kind, tmp_path, 3000) for kind in ("engines", "exports"))
    engines.put(A, {"x": bytes(1500)}, {})
    used(tmp_path, A, 1)
    exports.put(B, {"x": bytes(1500)}, {})
    assert (names(tmp_path), names(tmp_path, "exports")) == (set(), {B})


def test_what_is_larger_than_the_room_is_not_kept(tmp_path: Path) -> None:
    cache = ContentCache("engines", tmp_path, max_bytes=1000)
    cache.put(A, {"x": bytes(500)}, {})
    stored = cache.put(B, {"x": bytes(1001)}, {})
    assert stored is not None
    assert stored.files["x"].bytes == 1001
    assert names(tmp_path) == {A}


def test_nobody_elses_files_make_room(tmp_path: Path) -> None:
    (tmp_path / "engines" / "photos").mkdir(parents=True)
    (tmp_path / "engines" / "photos" / "record.json").write_bytes(bytes(5000))
    (tmp_path / "diary").write_bytes(bytes(5000))
    cache = ContentCache("engines", tmp_path, max_bytes=1500)
    for name in "abcd":
        cache.put(key(name), {"x": bytes(600)}, {})
    assert len(names(tmp_path)) == 2  # the last one, and the photos
    assert (tmp_path / "engines" / "photos" / "record.json").stat().st_size == 5000
    assert (tmp_path / "diary").exists()


def test_damaged_entries_go_first(tmp_path: Path) -> None:
    cache = ContentCache("engines", tmp_path)
    cache.put(A, {"x": bytes(1000)}, {})
    used(tmp_path, A, 1)
    cache.put(B, {"x": bytes(1000)}, {})
    (entry(tmp_path, B) / "record.json").unlink()
    ContentCache("engines", tmp_path, max_bytes=2900).put(key("c"), {"x": bytes(1000)}, {})
    assert names(tmp_path) == {A, key("c")}


# A cache that cannot be used.


@pytest.fixture
def in_the_way(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.touch()
    return path


def test_a_file_in_its_place_is_one_warning(in_the_way: Path) -> None:
    with pytest.warns(FastWanWarning, match=r"cannot be written.*FASTWAN_CACHE_DIR") as said:
        cache, _ = [ContentCache(kind, in_the_way) for kind in ("engines", "exports")]
    assert len(said) == 1
    assert "\n" not in str(said[0].message)
    with cache.lock(A):
        assert cache.put(A, CONTENTS, NOTE) is None
        assert cache.read(A) is None
        assert cache.copy(A, in_the_way.parent.joinpath) is None
    cache.forget(A)


def test_a_read_only_cache_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ContentCache("engines", tmp_path).put(A, CONTENTS, NOTE)

    def read_only(*_: object) -> Any:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(content_cache, "staging", read_only)
    monkeypatch.setattr(os, "utime", read_only)
    with pytest.warns(FastWanWarning, match="Read-only file system"):
        cache = ContentCache("engines", tmp_path)
    assert cache.read(A) == (CONTENTS, NOTE)
    assert cache.put(B, CONTENTS, NOTE) is None
    flip(entry(tmp_path))
    assert cache.read(A) is None


def test_a_full_disk_ends_writing_with_one_warning(
    cache: ContentCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.put(A, CONTENTS, NOTE)
    write, calls = content_cache.write_entry, []

    def full(folder: Path, *rest: Any) -> Record:
        calls.append(folder)
        write(folder, *rest)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(content_cache, "write_entry", full)
    with pytest.warns(FastWanWarning, match="No space left on device") as said:
        assert cache.put(B, CONTENTS, NOTE) is None
    assert cache.put(B, CONTENTS, NOTE) is None
    assert (len(said), len(calls)) == (1, 1)
    assert names(tmp_path) == {A}
    assert list((tmp_path / "engines" / ".tmp").iterdir()) == []
    assert cache.read(A) == (CONTENTS, NOTE)


def test_a_cache_that_vanishes_is_made_again(cache: ContentCache, tmp_path: Path) -> None:
    cache.put(A, CONTENTS, NOTE)
    shutil.rmtree(tmp_path / "engines")
    with cache.lock(A):
        assert cache.read(A) is None
        cache.put(A, CONTENTS, NOTE)
    assert cache.read(A) == (CONTENTS, NOTE)


def test_a_key_is_held_by_one(cache: ContentCache, tmp_path: Path) -> None:
    from filelock import FileLock, Timeout

    path = tmp_path / "engines" / ".tmp" / f"{A[:2]}.lock"
    with cache.lock(A), pytest.raises(Timeout):
        FileLock(path).acquire(timeout=0)
    with cache.lock(B), FileLock(path).acquire(timeout=0):
        pass
