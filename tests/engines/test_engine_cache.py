"""The engine cache: keyed by content, never trusted, whole or absent."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest

from fastwan.engines.backend import BuiltEngine
from fastwan.engines.cache import ContentHasher, EngineCache, content_key
from fastwan.engines.layers import LayerRecord
from fastwan.files import default_cache_dir
from fastwan.onnx_guard import DataRange

OPTIONS = {"target": 120, "version": "1.7"}


def built(record: LayerRecord, plan: bytes = b"plan" * 100) -> BuiltEngine:
    return BuiltEngine(memoryview(plan), (record,), 4096, (), ())


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache")


def key_of(folder: Path, model: onnx.ModelProto | None = None, **options: object) -> str:
    model = model or onnx.load(str(folder / "dit.onnx"), load_external_data=False)
    return content_key(model, folder, ContentHasher(), OPTIONS | options)


class TestKey:
    def load(self, folder: Path) -> onnx.ModelProto:
        return onnx.load(str(folder / "dit.onnx"), load_external_data=False)

    def test_remarks_do_not_change_it(self, onnx_bundle: Path) -> None:
        model = self.load(onnx_bundle)
        model.producer_name, model.doc_string = "another", "/home/somebody/model.py"
        model.metadata_props.add(key="path", value="/home/somebody")
        model.graph.node[0].doc_string = "remark"
        model.graph.initializer[0].doc_string = "remark"
        model.graph.node[0].metadata_props.add(key="trace", value="File ...")
        model.graph.input[0].doc_string = "remark"
        assert key_of(onnx_bundle, model) == key_of(onnx_bundle)
        assert model.producer_name == "another"  # the caller's model is left alone

    def test_where_the_weights_lie_does_not_change_it(self, onnx_bundle: Path) -> None:
        before = key_of(onnx_bundle)
        data = (onnx_bundle / "dit.data").read_bytes()
        (onnx_bundle / "moved.data").write_bytes(bytes(64) + data)
        model = self.load(onnx_bundle)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "offset":
                    entry.value = str(int(entry.value) + 64)
                elif entry.key == "location":
                    entry.value = "moved.data"
        assert key_of(onnx_bundle, model) == before

    def test_one_bit_of_a_weight_changes_it(self, onnx_bundle: Path) -> None:
        before = key_of(onnx_bundle)
        data = bytearray((onnx_bundle / "dit.data").read_bytes())
        data[-1] ^= 1
        (onnx_bundle / "dit.data").write_bytes(data)
        assert key_of(onnx_bundle) != before

    def test_a_bit_nobody_refers_to_does_not(self, onnx_bundle: Path) -> None:
        before = key_of(onnx_bundle)
        with (onnx_bundle / "dit.data").open("ab") as stream:
            stream.write(b"tail")
        assert key_of(onnx_bundle) == before

    def test_every_option_and_the_graph_change_it(self, onnx_bundle: Path) -> None:
        model = self.load(onnx_bundle)
        model.graph.node[-1].name = "other"
        keys = [
            key_of(onnx_bundle),
            key_of(onnx_bundle, model),
            key_of(onnx_bundle, target=121),
            key_of(onnx_bundle, version="1.8"),
            key_of(onnx_bundle, plugin="abc"),
        ]
        assert len(set(keys)) == len(keys)

    def test_a_range_is_read_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "data"
        path.write_bytes(bytes(100))
        hasher, reads = ContentHasher(), []
        read = ContentHasher._read

        def counted(self: ContentHasher, where: DataRange) -> str:
            reads.append(where)
            return read(self, where)

        monkeypatch.setattr(ContentHasher, "_read", counted)
        first = [hasher.digest(DataRange(path, 0, 50)) for _ in range(3)]
        assert len(set(first)) == len(reads) == 1
        hasher.digest(DataRange(path, 50, 50))
        assert len(reads) == 2


def test_what_is_put_is_got(cache: EngineCache, fp4_record: Callable[..., LayerRecord]) -> None:
    assert cache.get("key") is None
    put = cache.put("key", built(fp4_record()))
    assert cache.get("key") == put
    assert put.plan.read_bytes() == b"plan" * 100
    assert put.layers == (fp4_record(),)
    assert (put.bytes, put.scratch_bytes) == (400, 4096)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("file", ["engine.plan", "record.json"])
@pytest.mark.parametrize("damage", [flip, truncate, remove])
def test_a_damaged_entry_is_dropped(
    cache: EngineCache,
    fp4_record: Callable[..., LayerRecord],
    file: str,
    damage: Callable[[Path], None],
) -> None:
    plan = cache.put("key", built(fp4_record())).plan
    assert cache.get("key") is not None
    damage(plan.parent / file)
    assert cache.get("key") is None
    assert not plan.parent.exists()
    assert cache.put("key", built(fp4_record())) == cache.get("key")


def test_a_record_that_was_edited_is_dropped(
    cache: EngineCache, fp4_record: Callable[..., LayerRecord]
) -> None:
    path = cache.put("key", built(fp4_record())).plan.parent / "record.json"
    record = json.loads(path.read_text())
    record["payload"]["scratch_bytes"] = 1
    path.write_text(json.dumps(record))
    assert cache.get("key") is None


def test_a_failed_write_leaves_no_entry(
    cache: EngineCache, fp4_record: Callable[..., LayerRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fastwan.engines.cache.json.dumps", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cache.put("key", built(fp4_record()))
    assert list(cache.folder.iterdir()) == []


def test_what_a_killed_build_left_is_removed(
    cache: EngineCache, fp4_record: Callable[..., LayerRecord]
) -> None:
    left = cache.folder / ".key.abc123"
    left.mkdir(parents=True)
    (left / "engine.plan").write_bytes(b"half")
    cache.put("key", built(fp4_record()))
    assert not left.exists()


def test_the_entries_used_longest_ago_go_first(
    tmp_path: Path, fp4_record: Callable[..., LayerRecord]
) -> None:
    size = 0
    for name in ("a", "b"):
        entry = EngineCache(tmp_path).put(name, built(fp4_record())).plan.parent
        size = sum(file.stat().st_size for file in entry.iterdir())
        os.utime(entry / "record.json", (1000, 1000 if name == "a" else 2000))
    small = EngineCache(tmp_path, max_bytes=2 * size + size // 2)
    assert small.get("a") is not None  # and so it was used last
    small.put("c", built(fp4_record()))
    assert [small.get(name) is not None for name in "abc"] == [True, False, True]


def test_the_folder_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("FASTWAN_CACHE_DIR", raising=False)
    assert default_cache_dir() == tmp_path / "fastwan-export" / "engines"
    monkeypatch.setenv("FASTWAN_CACHE_DIR", str(tmp_path / "here"))
    assert EngineCache().folder == tmp_path / "here"


def test_a_lock_is_held_by_one(cache: EngineCache, kit: SimpleNamespace) -> None:
    from filelock import FileLock, Timeout

    with cache.lock("key"), pytest.raises(Timeout):
        FileLock(cache.folder / "key.lock").acquire(timeout=0)
    with cache.lock("other"):
        FileLock(cache.folder / "key.lock").acquire(timeout=0)
