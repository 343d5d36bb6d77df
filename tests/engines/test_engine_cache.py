"""The engine cache: keyed by content, never trusted; its entries are `ContentCache`'s."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from fastwan.content_cache import ContentCache
from fastwan.engines.backend import BuiltEngine
from fastwan.engines.cache import ContentHasher, EngineCache, content_key, plan_record
from fastwan.engines.layers import LayerRecord
from fastwan.errors import FastWanWarning
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


def key(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def test_what_is_put_is_got(
    cache: EngineCache, tmp_path: Path, fp4_record: Callable[..., LayerRecord]
) -> None:
    plan = tmp_path / "a.engine"
    assert cache.copy(key("a"), plan) is None
    file = cache.put(key("a"), built(fp4_record()))
    found = cache.copy(key("a"), plan)
    assert found is not None
    assert plan.read_bytes() == b"plan" * 100
    assert found.file == file == plan_record(memoryview(b"plan" * 100))
    assert found.layers == (fp4_record(),)
    assert found.scratch_bytes == 4096
    assert cache.copy(key("b"), tmp_path / "b.engine") is None
    assert not (tmp_path / "b.engine").exists()


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"layers": None},
        {"layers": [{}]},
        {"layers": ["gemm"]},
        {"inputs": [{"name": "x"}]},
        {"scratch_bytes": "many"},
        {"outputs": 7},
    ],
)
def test_a_whole_entry_of_other_content_is_a_miss(
    tmp_path: Path, fp4_record: Callable[..., LayerRecord], change: dict[str, object]
) -> None:
    cache, plan = EngineCache(tmp_path / "cache"), tmp_path / "a.engine"
    cache.put(key("a"), built(fp4_record()))
    stored = ContentCache("engines", tmp_path / "cache")
    contents, note = stored.read(key("a")) or ({}, {})
    stored.put(key("a"), dict(contents), note | change, replace=True)
    found = cache.copy(key("a"), plan)
    assert plan.exists() == (found is not None) == (change == {})
    cache.put(key("a"), built(fp4_record()))
    assert cache.copy(key("a"), plan) is not None


def test_an_engine_that_cannot_be_kept_is_recorded_all_the_same(
    tmp_path: Path, fp4_record: Callable[..., LayerRecord]
) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(FastWanWarning, match="cannot be written"):
        cache = EngineCache(tmp_path / "file")
    with cache.lock(key("a")):
        assert cache.copy(key("a"), tmp_path / "a.engine") is None
        file = cache.put(key("a"), built(fp4_record()))
    assert file == plan_record(memoryview(b"plan" * 100))


def test_the_folder_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fp4_record: Callable[..., LayerRecord]
) -> None:
    monkeypatch.setenv("FASTWAN_CACHE_DIR", str(tmp_path / "here"))
    EngineCache().put(key("a"), built(fp4_record()))
    assert (tmp_path / "here" / "engines" / key("a") / "engine.plan").is_file()
