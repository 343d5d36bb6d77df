"""A cache entry that is not what was stored is a miss, whatever is wrong with it.

Each function of `DAMAGE` changes the entry of A; its twin is `untouched`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastwan.cache_entry import Record, StoredFile
from fastwan.content_cache import ContentCache


def key(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


A, B = key("a"), key("b")
CONTENTS = {"engine.plan": b"plan" * 1000, "b": b"", "graph.onnx": bytes(range(256))}
NOTE = {"layers": [1, "é", None], "nested": {"x": 0.1}}


@pytest.fixture
def cache(tmp_path: Path) -> ContentCache:
    return ContentCache("engines", tmp_path)


def entry(root: Path, name: str = A) -> Path:
    return root / "engines" / name


def names(root: Path) -> set[str]:
    """Keys that have an entry."""
    return {path.name for path in (root / "engines").iterdir()} - {".tmp"}


def untouched(folder: Path) -> None:
    pass


def flip(folder: Path) -> None:
    data = bytearray((folder / "engine.plan").read_bytes())
    data[2000] ^= 1
    (folder / "engine.plan").write_bytes(data)


def cut(folder: Path) -> None:
    (folder / "engine.plan").write_bytes(CONTENTS["engine.plan"][:-1])


def lengthen(folder: Path) -> None:
    (folder / "b").write_bytes(b"x")


def empty(folder: Path) -> None:
    (folder / "engine.plan").write_bytes(b"")


def remove(folder: Path) -> None:
    (folder / "graph.onnx").unlink()


def swap(folder: Path) -> None:
    (folder / "graph.onnx").rename(folder / "x")
    (folder / "engine.plan").rename(folder / "graph.onnx")
    (folder / "x").rename(folder / "engine.plan")


def pipe(folder: Path) -> None:
    (folder / "engine.plan").unlink()
    os.mkfifo(folder / "engine.plan")


def device(folder: Path) -> None:
    (folder / "engine.plan").unlink()
    (folder / "engine.plan").symlink_to("/dev/zero")


def no_record(folder: Path) -> None:
    (folder / "record.json").unlink()


def pipe_for_record(folder: Path) -> None:
    (folder / "record.json").unlink()
    os.mkfifo(folder / "record.json")


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def file_for_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"in the way")


def pipe_for_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    os.mkfifo(folder)


def dangling_link(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to("nowhere")


def empty_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def other_entry(folder: Path) -> None:
    """A whole entry, but of another key."""
    ContentCache("engines", folder.parent.parent).put(B, {"engine.plan": b"other"}, {})
    shutil.rmtree(folder)
    entry(folder.parent.parent, B).rename(folder)


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """The record edited, its own hash left as it was."""

    def damage(folder: Path) -> None:
        path = folder / "record.json"
        whole = json.loads(path.read_text())
        change(whole["record"])
        path.write_text(json.dumps(whole))

    return damage


def rewritten(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "record.json"
        path.write_bytes(change(path.read_bytes()))

    return damage


DAMAGE: dict[str, Callable[[Path], None]] = {
    each.__name__: each
    for each in (
        flip, cut, lengthen, empty, remove, swap, pipe, device, no_record, pipe_for_record,
        no_folder, file_for_folder, pipe_for_folder, dangling_link, empty_folder, other_entry,
    )
} | {
    "note": edited(lambda record: record["note"].update(layers=[2])),
    "a number in the note": edited(lambda record: record["note"]["nested"].update(x=0.2)),
    "key": edited(lambda record: record.update(key=B)),
    "kind": edited(lambda record: record.update(kind="exports")),
    "version": edited(lambda record: record.update(schema_version=2)),
    "size": edited(lambda record: record["files"]["engine.plan"].update(bytes=3999)),
    "a file fewer": edited(lambda record: record["files"].pop("engine.plan")),
    "a file more": edited(lambda record: record["files"].update(x={"sha256": A, "bytes": 1})),
    "a field more": edited(lambda record: record.update(extra=1)),
    "cut off record": rewritten(lambda text: text[:-3]),
    "no record's bytes": rewritten(lambda text: b""),
    "not UTF-8": rewritten(lambda text: b"\xff" + text),
    "a list": rewritten(lambda text: b"[]"),
    "null": rewritten(lambda text: b'{"record": null, "sha256": ""}'),
    "deep": rewritten(lambda text: b'{"record": ' + b"[" * 10**5),
    "spaces": rewritten(lambda text: text.replace(b'": ', b'":  ', 1)),
    "hash": rewritten(lambda text: text.replace(text[-10:-5], b"00000")),
    "key twice": rewritten(lambda text: text.replace(b'{"record"', b'{"sha256": "", "record"')),
}  # fmt: skip


@pytest.mark.parametrize("damage", [untouched, *DAMAGE.values()], ids=["untouched", *DAMAGE])
@pytest.mark.parametrize("how", ["read", "copy"])
def test_a_damaged_entry_is_a_miss_and_is_made_again(
    cache: ContentCache, tmp_path: Path, damage: Callable[[Path], None], how: str
) -> None:
    cache.put(A, CONTENTS, NOTE)
    damage(entry(tmp_path))
    out = tmp_path / "out"
    out.mkdir()
    found = cache.read(A) if how == "read" else cache.copy(A, out.joinpath)
    if damage is untouched:
        assert found is not None
        return
    assert found is None
    assert list(out.iterdir()) == []
    assert names(tmp_path) <= {B}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.put(A, CONTENTS, NOTE)
    assert cache.read(A) == (CONTENTS, NOTE)


def test_a_sound_hash_over_hostile_names_is_a_miss(tmp_path: Path) -> None:
    (tmp_path / "engines" / A).mkdir(parents=True)
    secret = tmp_path / "secret"
    secret.write_bytes(b"x")
    for name in ("x", "../../secret"):
        file = StoredFile(sha256=hashlib.sha256(b"x").hexdigest(), bytes=1)
        record = Record(kind="engines", key=A, files={name: file}, note={})
        (entry(tmp_path) / "record.json").write_bytes(record.encoded())
        (entry(tmp_path) / "x").write_bytes(b"x")
        found = ContentCache("engines", tmp_path).read(A)
        assert (found is None) == (name != "x")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_any_edit_of_any_file_is_a_miss(tmp_path: Path, data: st.DataObject) -> None:
    root = tmp_path / "root"
    shutil.rmtree(root, ignore_errors=True)
    cache = ContentCache("engines", root)
    cache.put(A, CONTENTS, NOTE)
    path = entry(root) / data.draw(st.sampled_from(["record.json", "engine.plan", "graph.onnx"]))
    before = path.read_bytes()
    at = data.draw(st.integers(0, len(before)))
    drop = data.draw(st.integers(0, 4))
    after = before[:at] + data.draw(st.binary(max_size=4)) + before[at + drop :]
    path.write_bytes(after)
    assert cache.read(A) == ((CONTENTS, NOTE) if after == before else None)
