"""The CUDA device and the TensorRT executor over stand-ins for their libraries."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastwan.bundle import open_bundle
from fastwan.errors import BadInput, EnvironmentLacks
from fastwan.manifest import Engine, TensorSpec
from fastwan.plugins.regions.sage_attention3 import SageAttention3, SageAttributes
from fastwan.runtime.device import engines as trt_executor
from fastwan.runtime.device import platforms
from fastwan.runtime.device.cuda import CudaDevice, error_kind
from fastwan.runtime.device.engines import (
    BoundEngine,
    TensorRTEngine,
    check_target,
    check_version,
)
from fastwan.runtime.device.kernels import PluginKernels
from fastwan.runtime.recording.machine import DeviceError, DeviceInfo

GPU = DeviceInfo("A GPU", 120, "13.0", 32 << 30)


class FakeCuda:
    """``cuda.bindings.runtime`` with statuses to order; notes the calls."""

    cudaHostAllocDefault = 0
    cudaStreamNonBlocking = 1
    cudaEventDisableTiming = 2
    cudaEventDefault = 0
    cudaEventRecordExternal = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyDefault=4)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaStreamCaptureStatus = SimpleNamespace(cudaStreamCaptureStatusNone=0)

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.status: dict[str, int] = {}
        self.results: dict[str, Any] = {
            "cudaGetDeviceProperties": SimpleNamespace(
                name=b"A GPU", major=12, minor=0, multiProcessorCount=170
            ),
            "cudaDriverGetVersion": 13000,
            "cudaMemGetInfo": (10, 32),
            "cudaStreamIsCapturing": 1,
        }

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            result = self.results.get(name, 7)
            results = result if isinstance(result, tuple) else (result,)
            return (self.status.get(name, 0), *results)

        return call


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


def test_a_device_is_described_in_words(cuda: FakeCuda) -> None:
    device = CudaDevice(cuda)
    assert device.info == DeviceInfo("A GPU", 120, "13.0", 32, 170)
    assert device.free_bytes() == 10


@pytest.mark.parametrize(
    ("code", "kind"),
    [(2, "memory"), (900, "capture"), (700, "sticky"), (719, "sticky"), (1, "call"), (9, "call")],
)
def test_errors_are_sorted_by_what_can_be_done(cuda: FakeCuda, code: int, kind: str) -> None:
    device = CudaDevice(cuda)
    device.allocate(16)
    cuda.status["cudaMalloc"] = code
    with pytest.raises(DeviceError, match=f"cudaMalloc: {code}") as caught:
        device.allocate(16)
    assert caught.value.kind == kind == error_kind(code)


def test_without_a_driver_the_error_says_what_to_check(cuda: FakeCuda) -> None:
    cuda.status["cudaSetDevice"] = 35
    with pytest.raises(EnvironmentLacks, match="CUDA_VISIBLE_DEVICES"):
        CudaDevice(cuda)


def test_without_the_package_the_error_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(EnvironmentLacks, match=r"pip install .*gpu"):
        CudaDevice()


def test_marks_are_external_events_inside_a_capture_only(cuda: FakeCuda) -> None:
    device = CudaDevice(cuda)
    device.mark("decode", 3)
    device.begin_capture(3)
    device.mark("decode", 3)
    graph = device.end_capture(3)
    device.mark("decode", 3)
    names = [call[0] for call in cuda.calls if call[0].startswith("cudaEventRecord")]
    assert names == ["cudaEventRecord", "cudaEventRecordWithFlags", "cudaEventRecord"]
    assert sum(call[0] == "cudaEventCreateWithFlags" for call in cuda.calls) == 1
    assert ("cudaGraphUpload", graph, 3) in cuda.calls


def test_a_signal_is_a_copy_of_a_word_behind_the_copies_of_its_stream(cuda: FakeCuda) -> None:
    device = CudaDevice(cuda)
    ones = next(call[1] for call in cuda.calls if call[0] == "cudaMemset")
    assert ("cudaMemset", ones, 1, 4) in cuda.calls
    device.signal(96, 3)
    assert cuda.calls[-1] == ("cudaMemcpyAsync", 96, ones, 4, 4, 3)


def test_the_host_waits_for_a_word_or_the_end_of_the_stream(cuda: FakeCuda) -> None:
    device = CudaDevice(cuda)
    word = np.ones(1, np.uint32)
    before = len(cuda.calls)
    device.wait_for(word.ctypes.data, 3)
    assert len(cuda.calls) == before
    word[0] = 0
    looks = iter([600, 600, 0])
    cuda.cudaStreamQuery = lambda stream: (next(looks),)  # type: ignore[attr-defined]
    device.wait_for(word.ctypes.data, 3)
    assert list(looks) == []
    # The stream fails: the word would never be set.
    cuda.cudaStreamQuery = lambda stream: (700,)  # type: ignore[attr-defined]
    with pytest.raises(DeviceError, match="cudaStreamQuery: 700") as caught:
        device.wait_for(word.ctypes.data, 3)
    assert caught.value.kind == "sticky"


@pytest.mark.parametrize("method", ["cudaStreamEndCapture", "cudaGraphInstantiate"])
def test_a_capture_that_fails_can_be_left(cuda: FakeCuda, method: str) -> None:
    device = CudaDevice(cuda)
    cuda.status[method] = 1
    device.begin_capture(3)
    with pytest.raises(DeviceError) as caught:
        device.end_capture(3)
    assert caught.value.kind == "capture"
    device.abandon_capture(3)
    device.mark("end", 3)
    assert cuda.calls[-1][0] == "cudaEventRecord"


def spec(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype="bfloat16", shape=shape)


RECORD = Engine(
    file="text_encoder/t.engine",
    component="text_encoder",
    inputs=(spec("x", 1, "n", 4),),
    outputs=(spec("y", 1, "n", 4),),
    scratch_bytes=64,
)


class FakeContext:
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.answer = True

    def __getattr__(self, name: str) -> Callable[..., bool]:
        def call(*arguments: Any) -> bool:
            self.calls.append((name, *arguments))
            return self.answer

        return call


def make_engine(names: tuple[str, ...] = ("x", "y")) -> tuple[TensorRTEngine, FakeContext]:
    context = FakeContext()
    engine = SimpleNamespace(
        num_io_tensors=len(names),
        get_tensor_name=lambda index: names[index],
        create_execution_context=lambda strategy: context if strategy == "user" else None,
        device_memory_size_v2=96,
    )
    strategies = SimpleNamespace(USER_MANAGED="user")
    trt = SimpleNamespace(ExecutionContextAllocationStrategy=strategies)
    log = SimpleNamespace(last="out of luck")
    return TensorRTEngine(trt, None, engine, "t", RECORD, log), context


def test_an_engine_is_bound_once_and_enqueued() -> None:
    engine, context = make_engine()
    assert engine.scratch_bytes == 96
    engine.enqueue({"x": (512, (1, 3, 4)), "y": (1024, (1, 3, 4))}, 4096, 96, 5)
    assert context.calls == [
        ("set_device_memory", 4096, 96),
        ("set_input_shape", "x", (1, 3, 4)),
        ("set_tensor_address", "x", 512),
        ("set_tensor_address", "y", 1024),
        ("execute_async_v3", 5),
    ]
    context.calls.clear()
    engine.enqueue({"x": (512, (1, 5, 4)), "y": (2048, (1, 5, 4))}, 4096, 96, 5)
    assert context.calls == [
        ("set_input_shape", "x", (1, 5, 4)),
        ("set_tensor_address", "y", 2048),
        ("execute_async_v3", 5),
    ]


def test_another_profile_is_set_before_scratch_and_shapes() -> None:
    engine, context = make_engine()
    bindings = {"x": (512, (1, 3, 4)), "y": (1024, (1, 3, 4))}
    whole = [
        ("set_device_memory", 4096, 96),
        ("set_input_shape", "x", (1, 3, 4)),
        ("set_tensor_address", "x", 512),
        ("set_tensor_address", "y", 1024),
        ("execute_async_v3", 5),
    ]
    engine.enqueue(bindings, 4096, 96, 5, 0)
    assert context.calls == whole
    for profile in (2, 0):
        context.calls.clear()
        engine.enqueue(bindings, 4096, 96, 5, profile)
        assert context.calls == [("set_optimization_profile_async", profile, 5), *whole]
        context.calls.clear()
        engine.enqueue(bindings, 4096, 96, 5, profile)
        assert context.calls == [("execute_async_v3", 5)]


def test_a_refused_profile_is_asked_for_again() -> None:
    engine, context = make_engine()
    bindings = {"x": (512, (1, 3, 4)), "y": (1024, (1, 3, 4))}
    context.answer = False
    with pytest.raises(DeviceError, match="t: optimization profile 1 failed: out of luck"):
        engine.enqueue(bindings, 4096, 96, 5, 1)
    context.answer = True
    context.calls.clear()
    engine.enqueue(bindings, 4096, 96, 5, 1)
    assert context.calls[0] == ("set_optimization_profile_async", 1, 5)


def test_a_refused_enqueue_carries_tensorrts_own_words() -> None:
    engine, context = make_engine()
    context.answer = False
    with pytest.raises(DeviceError, match="t: shape of x failed: out of luck"):
        engine.enqueue({"x": (512, (1, 3, 4)), "y": (1024, (1, 3, 4))}, 4096, 96, 5)
    context.answer = True
    engine.enqueue({"x": (512, (1, 3, 4)), "y": (1024, (1, 3, 4))}, 4096, 96, 5)
    assert context.calls[-1] == ("execute_async_v3", 5)


def test_engines_of_one_plan_bind_their_own_tensors() -> None:
    plan, context = make_engine()
    first = BoundEngine(plan, {"a": "x", "b": "y"})
    second = BoundEngine(plan, {"b": "x", "c": "y"})
    assert first.scratch_bytes == second.scratch_bytes == plan.scratch_bytes
    shape = (1, 3, 4)
    for engine, bindings in (
        (first, {"a": (512, shape), "b": (1024, shape)}),
        (second, {"b": (1024, shape), "c": (2048, shape)}),
    ):
        engine.enqueue(bindings, 4096, 96, 5)
    assert [call for call in context.calls if call[0] == "set_tensor_address"] == [
        ("set_tensor_address", "x", 512),
        ("set_tensor_address", "y", 1024),
        ("set_tensor_address", "x", 1024),
        ("set_tensor_address", "y", 2048),
    ]
    assert sum(call[0] == "execute_async_v3" for call in context.calls) == 2


def test_each_plan_is_opened_once(data_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, opened = open_bundle(data_bundle), []

    class Loader:
        def __init__(self, backend: str) -> None:
            self.backend = backend

        def load(self, name: str, record: Engine, plan: bytes, *_: object) -> str:
            opened.append(record.file)
            return record.file

    version = bundle.manifest.versions["tensorrt-rtx"]
    monkeypatch.setattr(trt_executor, "_module", lambda _: SimpleNamespace(__version__=version))
    monkeypatch.setattr(trt_executor, "_Loader", Loader)
    engines = trt_executor.open_engines(bundle, GPU)
    assert sorted(opened) == sorted({each.file for each in bundle.manifest.engines.values()})
    assert list(engines) == list(bundle.manifest.engines)
    shared = {name for name, engine in engines.items() if isinstance(engine, BoundEngine)}
    assert shared == {name for name, each in bundle.manifest.engines.items() if each.constants}
    assert len(opened) < len(engines)


def test_an_engine_with_other_tensors_than_the_manifest_is_refused() -> None:
    make_engine()
    with pytest.raises(BadInput, match="other tensors than the manifest: y, z"):
        make_engine(("x", "z"))


def test_the_version_and_the_gpu_must_be_those_of_the_build() -> None:
    check_version("tensorrt-rtx", "1.7.1.116", "1.7.1.116")
    with pytest.raises(EnvironmentLacks, match=r"built by tensorrt-rtx 1\.7\.1\.116, 1\.8"):
        check_version("tensorrt-rtx", "1.7.1.116", "1.8")
    check_target("rtx5090", GPU)
    with pytest.raises(EnvironmentLacks, match=r"capability 12\.0 .* H200 has 9\.0"):
        check_target("rtx5090", DeviceInfo("H200", 90, "13.0", 1))


def test_a_missing_backend_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EnvironmentLacks, match=r"pip install .*\[tensorrt\]"):
        trt_executor._module("tensorrt")


@pytest.mark.trt
def test_tensorrt_rtx_has_every_call_that_is_used() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    assert trt.ExecutionContextAllocationStrategy.USER_MANAGED is not None
    for owner, names in (
        (trt.Runtime, ["deserialize_cuda_engine"]),
        (trt.ICudaEngine, ["create_execution_context", "device_memory_size_v2", "num_io_tensors"]),
        (
            trt.IExecutionContext,
            [
                "set_device_memory",
                "set_input_shape",
                "set_tensor_address",
                "execute_async_v3",
                "set_optimization_profile_async",
            ],
        ),
    ):
        assert [name for name in names if not hasattr(owner, name)] == []
    log = trt_executor._logger(trt)
    log.log(trt.ILogger.ERROR, "first\n  line")
    log.log(trt.ILogger.INFO, "chatter")
    assert log.last == "first line"


def test_a_launch_that_the_library_refuses_is_a_devices_error() -> None:
    def refuse(*_: Any) -> None:
        raise EnvironmentLacks("cast launch: no kernel image", where="plugin library")

    kernels = PluginKernels(SimpleNamespace(enqueue_cast=refuse))  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match="no kernel image"):
        kernels.cast((512, "float32"), (1024, "bfloat16"), (1, 4, 4), 3)


def test_cuda_on_another_gpu_is_refused_before_a_library_is_loaded(
    bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = DeviceInfo("H200", 90, "13.0", 1)
    monkeypatch.setattr(
        "fastwan.runtime.device.cuda.CudaDevice", lambda: SimpleNamespace(info=info)
    )
    with pytest.raises(EnvironmentLacks, match=r"H200 has 9\.0"):
        platforms.cuda_platform(open_bundle(bundle.root))


@pytest.mark.parametrize("tokens", [1, 100, 128, 4096, 32760])
def test_workspaces_are_as_large_as_the_library_says(tokens: int) -> None:
    from fastwan.plugins.loader import PluginLibrary

    try:
        library = PluginLibrary()
    except EnvironmentLacks:
        pytest.skip("the plugin library is not built")
    for heads in (2, 12):
        region = SageAttention3(1, -(-tokens // 128) * 128, SageAttributes(heads, tokens))
        assert region.workspace_bytes == library.workspace_bytes(region)
