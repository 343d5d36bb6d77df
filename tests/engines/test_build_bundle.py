"""Building an engine bundle: layout, manifest, cache, and nothing half-written."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from fastwan.bundle import open_bundle
from fastwan.config import SAMPLERS, TARGETS
from fastwan.engines.build import build_bundle
from fastwan.engines.builder import BuildRequest
from fastwan.engines.cache import EngineCache
from fastwan.engines.regions import region_records
from fastwan.engines.source import EngineSource
from fastwan.engines.tensorrt_rtx import TensorRTRTX
from fastwan.errors import BadInput, VerificationFailed
from fastwan.files import sha256_file
from fastwan.ownership import RECORD

Source = Callable[..., EngineSource]


def request(backend: Any, **rest: Any) -> BuildRequest:
    settings: dict[str, Any] = {
        "target": TARGETS["rtx5090"],
        "attention": "native",
        "samplers": (SAMPLERS["unipc"],),
        "components": ("dit",),
    }
    return BuildRequest(backend=backend, **(settings | rest))


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache")


def files_under(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_layout_and_manifest(
    onnx_bundle: Path, bundle_source: Source, fake_backend: Any, cache: EngineCache, tmp_path: Path
) -> None:
    plugin = tmp_path / "libfastwan_plugins.so"
    plugin.write_bytes(b"library")
    sources = [bundle_source("text_kv", cadence="prompt"), bundle_source("segment_00")]
    sources.append(bundle_source("decoder", component="decoder", cadence="latent"))
    wanted = request(
        fake_backend,
        plugin_library=plugin,
        components=("dit", "decoder"),
        stages=(("export", 1.5),),
    )
    manifest = build_bundle(onnx_bundle, tmp_path / "out", sources, wanted, cache=cache)

    assert files_under(tmp_path / "out") == {
        RECORD,
        "manifest.json", "layers.json", "dit/text_kv.engine", "dit/segment_00.engine",
        "decoder/decoder.engine", "plugins/libfastwan_plugins.so", "onnx/export.json",
        "onnx/dit.onnx", "onnx/dit.data",
    }  # fmt: skip
    bundle = open_bundle(tmp_path / "out")
    assert bundle.manifest == manifest
    assert set(manifest.files) == files_under(tmp_path / "out") - {"manifest.json", RECORD}
    for name in manifest.files:
        bundle.file(name)  # every hash is right
    assert list(manifest.engines) == ["text_kv", "segment_00", "decoder"]
    assert [e.runs for e in manifest.engines.values()] == ["prompt", "step", "latent"]
    assert manifest.engines["text_kv"].scratch_bytes == 1024
    assert set(bundle.layers) == set(manifest.engines)
    assert manifest.versions == {"tensorrt-rtx": "0.fake"}
    assert {"export", "build dit", "build decoder"} <= set(manifest.build.stages)
    assert manifest.build.seconds > 0
    assert manifest.build.peak_rss_bytes > 1 << 20
    assert files_under(onnx_bundle) == {"export.json", "dit.onnx", "dit.data"}  # copied


def test_a_temporary_onnx_bundle_is_moved(
    onnx_bundle: Path, bundle_source: Source, fake_backend: Any, cache: EngineCache, tmp_path: Path
) -> None:
    inode = (onnx_bundle / "dit.data").stat().st_ino
    wanted = request(fake_backend, move_onnx=True)
    build_bundle(onnx_bundle, tmp_path / "out", [bundle_source()], wanted, cache=cache)
    assert (tmp_path / "out/onnx/dit.data").stat().st_ino == inode
    assert files_under(onnx_bundle) == set()


@pytest.mark.parametrize("use_cache", [False, True])
def test_engines_built_at_once_make_the_same_bundle(
    onnx_bundle: Path, bundle_source: Source, fake_backend: Any, cache: EngineCache,
    tmp_path: Path, use_cache: bool,
) -> None:  # fmt: skip
    sources = [bundle_source(f"segment_0{i}", io_formats={f"{i}": "hwc8"}) for i in range(7)]
    manifests = []
    for jobs, caches in ((1, cache), (3, EngineCache(tmp_path / "other"))):
        fake_backend.at_once = jobs
        wanted = request(fake_backend, use_cache=use_cache)
        output = tmp_path / f"out{jobs}"
        manifests.append(build_bundle(onnx_bundle, output, sources, wanted, cache=caches))
    one, three = (json.loads(m.model_dump_json(exclude={"build"})) for m in manifests)
    assert list(one["engines"]) == list(three["engines"]) == [s.name for s in sources]
    assert one == three
    for name in one["files"]:
        assert (tmp_path / "out1" / name).read_bytes() == (tmp_path / "out3" / name).read_bytes()


def test_large_engines_are_built_one_at_a_time(
    onnx_bundle: Path, bundle_source: Source, fake_backend: Any, cache: EngineCache,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    fake_backend.at_once = 2
    threads: set[str] = set()
    build = fake_backend.build

    def spy(*args: Any) -> Any:
        threads.add(threading.current_thread().name)
        return build(*args)

    monkeypatch.setattr(fake_backend, "build", spy)
    sources = [bundle_source(f"segment_0{i}") for i in range(3)]
    size = (onnx_bundle / "dit.data").stat().st_size
    main = {threading.main_thread().name}
    for limit, alone in ((size, False), (size - 1, True)):
        threads.clear()
        monkeypatch.setattr("fastwan.engines.builder.CONCURRENT_WEIGHTS", limit)
        wanted = request(fake_backend, use_cache=False)
        build_bundle(onnx_bundle, tmp_path / f"out{limit}", sources, wanted)
        assert (threads == main) is alone


class TestCache:
    def test_nothing_is_built_twice(
        self, onnx_bundle: Path, bundle_source: Source, fake_backend: Any, cache: EngineCache,
        tmp_path: Path,
    ) -> None:  # fmt: skip
        for name in ("first", "second"):
            manifest = build_bundle(
                onnx_bundle, tmp_path / name, [bundle_source()], request(fake_backend), cache=cache
            )
        assert fake_backend.built == ["dit"]
        assert manifest.build.cached == ("dit",)
        first, second = (sha256_file(tmp_path / n / "dit/dit.engine") for n in ("first", "second"))
        assert first == second

    def test_only_what_an_option_touches_is_built_again(
        self, onnx_bundle: Path, bundle_source: Source, fake_backend: Any, cache: EngineCache,
        tmp_path: Path,
    ) -> None:  # fmt: skip
        decoder = bundle_source(
            "decoder", component="decoder", cadence="latent", io_formats={"y": "hwc8"}
        )
        wanted = request(fake_backend, components=("dit", "decoder"))
        build_bundle(onnx_bundle, tmp_path / "a", [bundle_source(), decoder], wanted, cache=cache)
        changed = bundle_source(
            "decoder", component="decoder", cadence="latent", io_formats={"x": "hwc8"}
        )
        build_bundle(onnx_bundle, tmp_path / "b", [bundle_source(), changed], wanted, cache=cache)
        assert fake_backend.built == ["dit", "decoder", "decoder"]

    @pytest.mark.parametrize(("takes_plugins", "built"), [(False, 1), (True, 2)])
    def test_another_plugin_library_matters_to_a_backend_that_takes_it(
        self, onnx_bundle: Path, bundle_source: Source, fake_backend: Any, cache: EngineCache,
        tmp_path: Path, takes_plugins: bool, built: int,
    ) -> None:  # fmt: skip
        fake_backend.takes_plugins = takes_plugins
        plugin = tmp_path / "libfastwan_plugins.so"
        for version in ("one", "two"):
            plugin.write_text(version)
            wanted = request(fake_backend, plugin_library=plugin)
            build_bundle(onnx_bundle, tmp_path / version, [bundle_source()], wanted, cache=cache)
        assert len(fake_backend.built) == built

    def test_no_cache_builds_and_leaves_nothing_behind(
        self, onnx_bundle: Path, bundle_source: Source, fake_backend: Any, cache: EngineCache,
        tmp_path: Path,
    ) -> None:  # fmt: skip
        wanted = request(fake_backend, use_cache=False)
        for name in ("a", "b"):
            build_bundle(onnx_bundle, tmp_path / name, [bundle_source()], wanted, cache=cache)
        assert fake_backend.built == ["dit", "dit"]
        assert list((tmp_path / "cache").rglob("*.plan")) == []
        assert (tmp_path / "a/dit/dit.engine").read_bytes() == b"plandit"

    def test_a_build_that_was_cut_short_goes_on_where_it_stopped(
        self, onnx_bundle: Path, bundle_source: Source, fake_backend: Any, cache: EngineCache,
        tmp_path: Path,
    ) -> None:  # fmt: skip
        sources = [bundle_source(f"segment_0{i}", io_formats={f"{i}": "hwc8"}) for i in range(3)]
        fake_backend.fail_on = "segment_02"
        with pytest.raises(KeyboardInterrupt):
            build_bundle(onnx_bundle, tmp_path / "out", sources, request(fake_backend), cache=cache)
        assert not (tmp_path / "out").exists()
        fake_backend.fail_on, fake_backend.built = None, []
        manifest = build_bundle(
            onnx_bundle, tmp_path / "out", sources, request(fake_backend), cache=cache
        )
        assert fake_backend.built == ["segment_02"]
        assert manifest.build.cached == ("segment_00", "segment_01")

    def test_a_cached_engine_passes_the_gate_anew(
        self, onnx_bundle: Path, bundle_source: Source, fake_backend: Any, cache: EngineCache,
        kit: SimpleNamespace, tmp_path: Path,
    ) -> None:  # fmt: skip
        fake_backend.layers = (
            kit.record("other", inputs=[("BFloat16", (1, 2))], outputs=[("BFloat16", (1, 2))]),
        )
        untargeted = bundle_source(linears=())
        build_bundle(onnx_bundle, tmp_path / "a", [untargeted], request(fake_backend), cache=cache)
        with pytest.raises(VerificationFailed, match="a: no GEMM names it"):
            build_bundle(
                onnx_bundle, tmp_path / "b", [bundle_source()], request(fake_backend), cache=cache
            )
        assert fake_backend.built == ["dit"]


class TestFailure:
    @pytest.fixture
    def existing(
        self, onnx_bundle: Path, bundle_source: Source, fake_backend: Any, cache: EngineCache,
        tmp_path: Path,
    ) -> Path:  # fmt: skip
        out = tmp_path / "out"
        build_bundle(onnx_bundle, out, [bundle_source()], request(fake_backend), cache=cache)
        return out

    def snapshot(self, folder: Path) -> dict[str, str]:
        return {name: sha256_file(folder / name) for name in files_under(folder)}

    @pytest.mark.parametrize("failure", [None, "interrupt", "lost fp4", "bad onnx", "bad name"])
    def test_a_bundle_is_replaced_only_by_a_whole_one(
        self, existing: Path, onnx_bundle: Path, bundle_source: Source, fake_backend: Any,
        kit: SimpleNamespace, tmp_path: Path, failure: str | None,
    ) -> None:  # fmt: skip
        before = self.snapshot(existing)
        sources = [bundle_source("one"), bundle_source("two")]
        fake_backend.plan = b"newer"
        if failure == "interrupt":
            fake_backend.fail_on = "two"
        elif failure == "lost fp4":
            fake_backend.layers = (
                kit.record("gemm", inputs=[], outputs=[("BFloat16", (1,))], nodes=("a/MatMul",)),
            )
        elif failure == "bad onnx":
            (onnx_bundle / "dit.data").write_bytes(b"short")
        elif failure == "bad name":
            sources[1] = bundle_source("../two")
        wanted = request(fake_backend, use_cache=False)
        if failure is None:
            build_bundle(onnx_bundle, existing, sources, wanted)
            assert (existing / "dit/two.engine").read_bytes() == b"newertwo"
            assert not (existing / "dit/dit.engine").exists()
        else:
            with pytest.raises((KeyboardInterrupt, VerificationFailed, BadInput)):
                build_bundle(onnx_bundle, existing, sources, wanted)
            assert self.snapshot(existing) == before
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {"out", "cache", "onnx_bundle"}

    def test_a_folder_of_somebody_else_is_not_touched(
        self, onnx_bundle: Path, bundle_source: Source, fake_backend: Any, tmp_path: Path
    ) -> None:
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos/cat.png").write_bytes(b"cat")
        with pytest.raises(BadInput, match="was not written there"):
            build_bundle(onnx_bundle, tmp_path / "photos", [bundle_source()], request(fake_backend))
        assert fake_backend.built == []

    def test_a_missing_file_of_the_onnx_bundle_is_named_before_anything_is_built(
        self, onnx_bundle: Path, bundle_source: Source, fake_backend: Any, tmp_path: Path
    ) -> None:
        source = bundle_source()
        (onnx_bundle / "dit.data").unlink()
        with pytest.raises(BadInput, match=r"missing .*dit\.data"):
            build_bundle(onnx_bundle, tmp_path / "out", [source], request(fake_backend))
        assert fake_backend.built == []

    def test_an_unchecked_graph_never_reaches_the_backend(
        self, onnx_bundle: Path, bundle_source: Source, fake_backend: Any, cache: EngineCache,
        tmp_path: Path,
    ) -> None:  # fmt: skip
        source = bundle_source()
        secret = tmp_path / "secret"
        secret.write_bytes((onnx_bundle / "dit.data").read_bytes())
        model = onnx.load_model_from_string(source.model)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = "../secret"
        hostile = bundle_source()
        object.__setattr__(hostile, "model", model.SerializeToString())
        with pytest.raises(BadInput, match="outside its folder"):
            build_bundle(
                onnx_bundle, tmp_path / "out", [hostile], request(fake_backend), cache=cache
            )
        assert fake_backend.built == []

    @pytest.mark.parametrize("names", [(), ("a", "a"), (".hidden",), ("a/b",)])
    def test_engine_names_are_plain_and_unique(
        self, onnx_bundle: Path, bundle_source: Source, fake_backend: Any, tmp_path: Path,
        names: tuple[str, ...],
    ) -> None:  # fmt: skip
        sources = [bundle_source(name) for name in names]
        with pytest.raises(BadInput, match=r"unique plain name|nothing to build"):
            build_bundle(onnx_bundle, tmp_path / "out", sources, request(fake_backend))


@pytest.fixture
def region_graph() -> Any:
    import onnx_ir as ir

    from fastwan.export.passes.cut_at_regions import Region

    model = ir.from_onnx_text(
        """
        <ir_version: 11, opset_import: ["" : 23, "fastwan" : 1]>
        region_00 (bfloat16[1,128,768] qkv) => (bfloat16[1,128,256] out)
        <float[3] qkv_scale = {1.0, 1.0, 1.0}>
        {
            out = fastwan.SageAttention3 <num_heads: int = 2, eps: float = 1e-06> (qkv, qkv_scale)
        }
        """
    )
    return Region("region_00", model)


def test_regions_are_recorded_after_the_engine_that_feeds_them(
    region_graph: Any, onnx_bundle: Path, bundle_source: Source, fake_backend: Any,
    cache: EngineCache, tmp_path: Path,
) -> None:  # fmt: skip
    from fastwan.manifest import Engine, TensorSpec

    def engine(*outputs: str) -> Engine:
        specs = tuple(TensorSpec(name=name, dtype="bfloat16", shape=(1,)) for name in outputs)
        return Engine(file="f", component="dit", inputs=(), outputs=specs, scratch_bytes=0)

    engines = {"segment_00": engine("qkv", "hidden"), "segment_01": engine("noise")}
    (record,) = region_records([region_graph], engines).values()
    assert record.after == "segment_00"
    assert record.nodes[0].op == "SageAttention3"
    assert record.nodes[0].inputs == ("qkv", "qkv_scale")
    assert record.nodes[0].attributes["num_heads"] == 2
    assert [(s.name, s.dtype) for s in record.constants] == [("qkv_scale", "float32")]
    assert record.outputs[0].shape == (1, 128, 256)
    with pytest.raises(BadInput, match="no engine makes 'qkv'"):
        region_records([region_graph], {"segment_01": engine("noise")})


@pytest.mark.trt
def test_two_real_bundles_have_the_same_engines(
    onnx_bundle: Path, bundle_source: Source, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
    wanted = request(TensorRTRTX(), use_cache=False)
    one, two = (
        build_bundle(onnx_bundle, tmp_path / name, [bundle_source()], wanted) for name in "ab"
    )
    assert one.files == two.files
    assert one.engines == two.engines
    records = json.loads((tmp_path / "a/layers.json").read_text())
    assert records["dit"][-1]["precision"] == "FP4E2M1"
