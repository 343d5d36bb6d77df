"""The cache of compiled kernels over a stand-in for TensorRT-RTX's."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastwan.bundle import Bundle, open_bundle
from fastwan.config import SAMPLERS
from fastwan.content_cache import ContentCache
from fastwan.errors import EnvironmentLacks, FastWanWarning
from fastwan.runtime.device import engines as trt_executor
from fastwan.runtime.device import runtime_cache
from fastwan.runtime.device.components import DeviceComponents
from fastwan.runtime.device.runtime_cache import RuntimeCache, kernels_key
from fastwan.runtime.device.session import Session
from fastwan.runtime.model.samplers import schedule_of
from fastwan.runtime.recording.machine import DeviceInfo

GPU = DeviceInfo("A GPU", 120, "13.0", 32 << 30)


class NativeCache:
    """``IRuntimeCache``: what was compiled, as bytes; takes only what has its mark."""

    def __init__(self) -> None:
        self.blob = b""
        self.fault: Exception | None = None

    def deserialize(self, blob: bytes) -> bool:
        if self.fault is not None:
            raise self.fault
        if not blob.startswith(b"kernels"):
            return False
        self.blob = bytes(blob)
        return True

    def serialize(self) -> memoryview | None:
        if self.fault is not None:
            raise self.fault
        return memoryview(self.blob) if self.blob else None


class Config:
    """``IRuntimeConfig``."""

    def __init__(self, native: NativeCache | None = None, accepts: bool = True) -> None:
        self.native, self.accepts = native, accepts
        self.made = 0
        self.cache: NativeCache | None = None
        self.strategy = ""

    def create_runtime_cache(self) -> NativeCache | None:
        self.made += 1
        return self.native

    def set_runtime_cache(self, cache: NativeCache) -> bool:
        self.cache = cache if self.accepts else None
        return self.accepts

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy


KEY = "0" * 64


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def opened(root: Path) -> RuntimeCache:
    return RuntimeCache(ContentCache("runtime", root), KEY)


def kept(root: Path) -> Path:
    """File that keeps the kernels."""
    return root / "runtime" / KEY / "kernels"


def started(root: Path, compiles: bytes = b"") -> tuple[RuntimeCache, NativeCache]:
    """A process: one engine is loaded, and maybe something compiled."""
    cache, native = opened(root), NativeCache()
    cache.attach(Config(native))
    native.blob = compiles or native.blob
    return cache, native


def test_the_second_start_takes_over_what_the_first_compiled(root: Path) -> None:
    first, _ = started(root, b"kernels 1")
    assert first.state == "miss"
    first.save()
    second, native = started(root)
    assert (second.state, native.blob) == ("hit", b"kernels 1")


def test_one_cache_serves_all_engines(root: Path) -> None:
    cache, configs = opened(root), [Config(NativeCache()) for _ in range(3)]
    for config in configs:
        cache.attach(config)
    assert [config.made for config in configs] == [1, 0, 0]
    assert {id(config.cache) for config in configs} == {id(configs[0].native)}


def test_it_is_written_where_something_was_compiled(root: Path) -> None:
    cache, native = started(root)
    cache.save()
    assert not kept(root).exists()
    native.blob = b"kernels 1"
    cache.save()
    first = kept(root).stat().st_ino
    cache.save()
    assert kept(root).stat().st_ino == first
    native.blob = b"kernels 1 and 2"
    cache.save()
    assert kept(root).read_bytes() == b"kernels 1 and 2"
    assert started(root)[1].blob == b"kernels 1 and 2"
    second = kept(root).stat().st_ino
    started(root)[0].save()
    assert kept(root).stat().st_ino == second


@pytest.mark.parametrize("damaged", [False, True])
def test_what_is_not_what_was_written_is_compiled_anew(root: Path, damaged: bool) -> None:
    started(root, b"kernels of the first start")[0].save()
    if damaged:
        kept(root).write_bytes(b"kernels of the first stars")
    cache, native = started(root)
    assert (cache.state == "hit") != damaged
    native.blob = b"kernels anew"
    cache.save()
    assert started(root)[1].blob == b"kernels anew"


def test_a_file_that_tensorrt_does_not_take_is_ignored(root: Path) -> None:
    first, _ = started(root, b"of another driver")
    first.save()
    with pytest.warns(FastWanWarning, match="TensorRT-RTX does not take them"):
        cache, _ = started(root)
    assert cache.state == "miss"


def test_a_parser_that_throws_does_not_stop_the_start(root: Path) -> None:
    started(root, b"kernels")[0].save()
    native = NativeCache()
    native.fault = TypeError("broken")
    cache = opened(root)
    with pytest.warns(FastWanWarning, match="broken"):
        cache.attach(Config(native))
    assert cache.state == "miss"
    with pytest.warns(FastWanWarning, match="not kept: broken"):
        cache.save()


def test_sizes_are_bounded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, native = started(root)
    native.blob = b"kernels 2"
    monkeypatch.setattr(runtime_cache, "MAX_BYTES", 8)
    with pytest.warns(FastWanWarning, match="9 bytes of compiled kernels are not kept"):
        cache.save()
    assert not kept(root).exists()
    monkeypatch.setattr(runtime_cache, "MAX_BYTES", 9)
    cache.save()
    assert started(root)[1].blob == b"kernels 2"


@pytest.mark.parametrize("config", [Config(None), Config(NativeCache(), accepts=False)])
def test_without_the_feature_there_is_no_cache(root: Path, config: Config) -> None:
    cache = opened(root)
    if config.native is None:
        cache.attach(config)
    else:
        config.native.blob = b"kernels"
        with pytest.warns(FastWanWarning, match="refuses a runtime cache"):
            cache.attach(config)
    cache.save()
    assert cache.state == "unused"
    assert not kept(root).exists()


def test_a_folder_that_cannot_be_written_is_noted_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(FastWanWarning, match="cannot be written") as notes:
        cache, _ = started(tmp_path / "file", b"kernels")
    cache.save()  # any further warning is an error here
    assert (cache.state, len(notes)) == ("miss", 1)


def test_the_key_says_what_the_kernels_are_for(bundle: Any) -> None:
    opened = open_bundle(bundle.root)
    usual = kernels_key(opened, "1.7.1", GPU)
    assert kernels_key(opened, "1.7.1", replace(GPU, total_bytes=1)) == usual
    changed = dict(opened.manifest.files)
    file = opened.manifest.engines["dit"].file
    changed[file] = changed[file].model_copy(update={"sha256": "0" * 64})
    other = Bundle(opened.root, opened.manifest.model_copy(update={"files": changed}))
    names = {
        usual,
        kernels_key(other, "1.7.1", GPU),
        kernels_key(opened, "1.7.2", GPU),
        *(
            kernels_key(opened, "1.7.1", replace(GPU, **{field: value}))
            for field, value in (("name", "B"), ("compute_capability", 121), ("driver", "13.1"))
        ),
    }
    assert len(names) == 6


class FakeRtx:
    """The parts of ``tensorrt_rtx`` that opening a bundle's engines asks for."""

    __version__ = "1.7.1"
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(NONE="none")
    CudaGraphStrategy = SimpleNamespace(DISABLED="disabled")

    class ILogger:
        pass

    def __init__(self, bundle: Bundle) -> None:
        self.configs: list[Any] = []
        self._bundle = bundle

    def Runtime(self, log: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=self._engine)

    def _engine(self, data: bytes) -> Any:
        record = self._bundle.manifest.engines[data.decode().removeprefix("engine ")]
        names = [spec.name for spec in (*record.inputs, *record.outputs)]

        def config() -> Config:
            self.configs.append(Config(NativeCache()))
            return self.configs[-1]  # type: ignore[no-any-return]

        return SimpleNamespace(
            num_io_tensors=len(names),
            get_tensor_name=names.__getitem__,
            create_runtime_config=config,
            create_execution_context=lambda given: given if given in self.configs else None,
        )


def test_engines_of_rtx_are_opened_with_one_cache_and_no_compiling_beside_a_video(
    bundle: Any, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_bundle(bundle.root)
    fake = FakeRtx(opened)
    monkeypatch.setattr(trt_executor, "_module", lambda _backend: fake)
    cache = RuntimeCache(ContentCache("runtime", root), KEY)
    engines = trt_executor.open_engines(opened, GPU, cache)
    assert list(engines) == list(opened.manifest.engines)
    assert len(fake.configs) == len(engines)
    for config in fake.configs:
        assert config.strategy == "user"
        assert config.dynamic_shapes_kernel_specialization_strategy == "none"
        assert config.cuda_graph_strategy == "disabled"
        assert config.cache is fake.configs[0].native


@pytest.mark.parametrize("loads", [True, False])
def test_an_engine_of_no_bundle_is_opened_as_those_of_a_bundle_are(
    bundle: Any, root: Path, monkeypatch: pytest.MonkeyPatch, loads: bool
) -> None:
    opened = open_bundle(bundle.root)
    fake = FakeRtx(opened)
    if not loads:
        monkeypatch.setattr(fake, "_engine", lambda _plan: None)
    monkeypatch.setattr(trt_executor, "_module", lambda _backend: fake)
    cache = RuntimeCache(ContentCache("runtime", root), KEY)
    record = opened.manifest.engines["dit"]

    def open_one() -> Any:
        return trt_executor.open_built("tensorrt-rtx", "dit", record, b"engine dit", cache)

    if loads:
        open_one()
        (config,) = fake.configs
        assert (config.strategy, config.cuda_graph_strategy) == ("user", "disabled")
    else:
        with pytest.raises(EnvironmentLacks, match="tensorrt-rtx cannot load the engine dit"):
            open_one()


def test_only_rtx_compiles_here(
    bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTWAN_CACHE_DIR", str(tmp_path))
    opened = open_bundle(bundle.root)
    monkeypatch.setattr(trt_executor, "_module", lambda _backend: FakeRtx(opened))
    cache = trt_executor.runtime_cache(opened, GPU)
    assert cache is not None
    cache.attach(Config(NativeCache()))
    assert cache.state == "miss"
    tensorrt = opened.manifest.model_copy(update={"backend": "tensorrt"})
    assert trt_executor.runtime_cache(Bundle(opened.root, tensorrt), GPU) is None


def test_a_session_keeps_what_its_warm_up_compiled(
    bundle: Any, root: Path, host_device: Any, host_platform: Callable[..., Any]
) -> None:
    cache, native = started(root, b"kernels")
    platform = replace(host_platform(host_device), runtime_cache=cache)
    session = Session(platform, open_bundle(bundle.root), schedule_of(SAMPLERS["unipc"]))
    assert not kept(root).exists()
    session.load()
    assert kept(root).exists()
    shutil.rmtree(kept(root).parent)
    native.blob = b"kernels of a prompt"
    session.load()
    assert not kept(root).exists()  # a session that is loaded is not loaded again


def test_components_say_whether_the_cache_was_used(
    bundle: Any, root: Path, host_device: Any, host_platform: Callable[..., Any]
) -> None:
    opened = open_bundle(bundle.root)
    platform = host_platform(host_device)
    assert DeviceComponents(opened, platform).runtime_cache == "unused"
    for state in ("miss", "hit"):
        cache, _ = started(root, b"kernels")
        components = DeviceComponents(opened, replace(platform, runtime_cache=cache))
        components.load(schedule_of(SAMPLERS["unipc"]), text=True, decoder=True)
        assert components.runtime_cache == state


@pytest.mark.trt
def test_tensorrt_rtx_has_the_calls_of_the_cache() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    wanted = {
        trt.ICudaEngine: {"create_runtime_config", "create_execution_context"},
        trt.IRuntimeConfig: {
            "create_runtime_cache", "set_runtime_cache", "cuda_graph_strategy",
            "set_execution_context_allocation_strategy",
            "dynamic_shapes_kernel_specialization_strategy",
        },
        trt.IRuntimeCache: {"serialize", "deserialize"},
        trt.DynamicShapesKernelSpecializationStrategy: {"NONE"},
        trt.CudaGraphStrategy: {"DISABLED"},
    }  # fmt: skip
    for owner, names in wanted.items():
        assert names - set(dir(owner)) == set()
