"""The TensorRT 11 backend over a fake module: order of calls, plugins, and what it refuses."""

from __future__ import annotations

import sys
from enum import IntEnum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import fastwan.engines.tensorrt as backend
from fastwan.config import TARGETS
from fastwan.engines.backend import BuildOptions, load_backend
from fastwan.engines.monitor import deferred_interrupt
from fastwan.errors import BadInput, EnvironmentLacks, VerificationFailed
from fastwan.progress import Quiet

RTX5090 = TARGETS["rtx5090"]
LAYERS = (
    "Layers:\nName: a, LayerType: gemm, Inputs: [], Outputs: [ { Name: y, Dimensions: [1,2], "
    "Format/Datatype: Half }], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: a/MatMul]\n\n"
)


class Severity(IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    Severity = Severity


class FakeTensor:
    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        self.name, self.shape, self.dtype = name, shape, SimpleNamespace(name="BF16")

    def get_dimension_name(self, axis: int) -> str:
        return "length"


class FakeTensorRT(ModuleType):
    """Records calls; `script` says what the builder logs and returns."""

    def __init__(self) -> None:
        super().__init__("tensorrt")
        self.__version__ = "11.4.0"
        self.calls: list[str] = []
        self.messages = [LAYERS, "Total Activation Memory: 4096 bytes"]
        self.errors: list[str] = []
        self.plan: bytes | None = b"engine"
        self.parses = True
        self.input_shape: tuple[int, ...] = (1, 128)
        self.supported = {"MatMul", "SageAttention3", "TRT_FP4DynamicQuantize", "DequantizeLinear"}
        self.supported |= {"Cast", "Transpose"}
        self.ILogger = ILogger
        self.IProgressMonitor = type("IProgressMonitor", (), {"__init__": lambda self: None})
        self.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
        self.NetworkDefinitionCreationFlag = IntEnum("Flag", {"STRONGLY_TYPED": 1})
        fake = self

        class Builder:
            def __init__(self, logger: Any) -> None:
                self.logger = logger

            def create_network(self, flags: int) -> Any:
                fake.calls.append(f"create_network({flags})")
                return SimpleNamespace(
                    num_inputs=1,
                    num_outputs=1,
                    get_input=lambda i: FakeTensor("x", fake.input_shape),
                    get_output=lambda i: FakeTensor("y", (1, 128)),
                )

            def create_builder_config(self) -> Any:
                return SimpleNamespace(add_optimization_profile=self._add)

            def create_optimization_profile(self) -> Any:
                def set_shape(*shapes: Any) -> None:
                    fake.calls.append(f"set_shape{shapes}")

                return SimpleNamespace(set_shape=set_shape)

            def _add(self, profile: Any) -> int:
                fake.calls.append("add_optimization_profile")
                return 0

            def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
                fake.calls.append(f"build({config.profiling_verbosity})")
                config.progress_monitor.phase_start("Building engine", None, 1)
                if not config.progress_monitor.step_complete("Building engine", 0):
                    return None
                for message in fake.messages:
                    self.logger.log(Severity.VERBOSE, message)
                for message in fake.errors:
                    self.logger.log(Severity.ERROR, message)
                return fake.plan

        class OnnxParser:
            num_errors = 1

            def __init__(self, network: Any, logger: Any) -> None:
                pass

            def supports_operator(self, name: str) -> bool:
                fake.calls.append(f"supports_operator({name})")
                return name in fake.supported

            def parse(self, data: bytes, path: str) -> bool:
                fake.calls.append(f"parse({Path(path).name})")
                return fake.parses

            def get_error(self, index: int) -> Any:
                return SimpleNamespace(
                    desc=lambda: "bad\ncudaError 35",
                    node_name=lambda: "a/MatMul",
                    node_operator=lambda: "MatMul",
                )

        self.Builder, self.OnnxParser = Builder, OnnxParser


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    """TensorRT 11 on a machine with an RTX 5090."""
    fake = FakeTensorRT()
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setattr(backend, "compute_capability", lambda device=0: 120)
    return fake


def build(kit: SimpleNamespace, folder: Path, **rest: Any) -> Any:
    source = kit.source(rest.pop("model", None) or kit.graph(), folder)
    return load_backend("tensorrt").build(source, BuildOptions(RTX5090, **rest), Quiet())


def test_the_builder_is_called_in_order(
    kit: SimpleNamespace, trt: FakeTensorRT, tmp_path: Path
) -> None:
    built = build(kit, tmp_path)
    assert bytes(built.plan) == b"engine"
    assert built.scratch_bytes == 4096
    assert built.layers[0].nodes == ("a/MatMul",)
    asked = [call for call in trt.calls if call.startswith("supports")]
    assert len(asked) == 5
    assert [call for call in trt.calls if call not in asked] == [
        "create_network(2)",
        "parse(dit.onnx)",
        "build(detailed)",
    ]
    assert trt.calls.index("parse(dit.onnx)") > max(map(trt.calls.index, asked))


PROFILES = ((1, 1), (1, 64), (1, 64)), ((1, 65), (1, 96), (1, 128))


def test_each_profile_is_added_and_the_largest_scratch_counts(
    kit: SimpleNamespace, trt: FakeTensorRT, tmp_path: Path
) -> None:
    trt.input_shape = (1, -1)
    second = LAYERS.replace("Layers:\n", "").replace("Name: a", "Name: a [profile 1]")
    trt.messages = [LAYERS.removesuffix("\n\n") + "\n" + second]
    trt.messages += [f"Total Activation Memory: {size} bytes" for size in (512, 8192, 1024)]
    source = kit.source(kit.graph(), tmp_path, profiles={"x": PROFILES})
    built = load_backend("tensorrt").build(source, BuildOptions(RTX5090), Quiet())
    assert built.scratch_bytes == 8192
    assert [record.profile for record in built.layers] == [0, 1]
    begin = trt.calls.index("parse(dit.onnx)") + 1
    assert trt.calls[begin:-1] == [
        "set_shape('x', (1, 1), (1, 64), (1, 64))",
        "add_optimization_profile",
        "set_shape('x', (1, 65), (1, 96), (1, 128))",
        "add_optimization_profile",
    ]
    trt.messages[0] = LAYERS
    with pytest.raises(VerificationFailed, match="of every profile"):
        load_backend("tensorrt").build(source, BuildOptions(RTX5090), Quiet())


def with_attention(kit: SimpleNamespace) -> Any:
    from onnx import helper

    model = kit.graph()
    node = helper.make_node("SageAttention3", ["x"], ["z"], "attn", domain="fastwan")
    model.graph.node.append(node)
    return model


def test_the_plugin_library_is_loaded_before_parsing(
    kit: SimpleNamespace, trt: FakeTensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "libfastwan_plugins.so"

    def load(module: Any, path: Path) -> None:
        assert (module, path) == (trt, library)
        trt.calls.append("load plugins")

    monkeypatch.setattr("fastwan.plugins.registry.load_into_registry", load)
    build(kit, tmp_path, model=with_attention(kit), plugin_library=library)
    assert trt.calls[0] == "load plugins"
    assert "parse(dit.onnx)" in trt.calls


def test_without_the_plugin_library_its_node_is_refused(
    kit: SimpleNamespace, trt: FakeTensorRT, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="fastwan::SageAttention3 of node 'attn'"):
        build(kit, tmp_path, model=with_attention(kit))
    assert not any(call.startswith("parse") for call in trt.calls)


def test_parser_and_builder_errors_are_told(
    kit: SimpleNamespace, trt: FakeTensorRT, tmp_path: Path
) -> None:
    trt.plan, trt.errors = None, ["first", "out of memory"]
    with pytest.raises(BadInput, match="builder refused the graph: out of memory"):
        build(kit, tmp_path)
    trt.parses = False
    with pytest.raises(BadInput, match=r"refused node 'a/MatMul' \(MatMul\): bad \(dit\)$"):
        build(kit, tmp_path)


@pytest.mark.parametrize("missing", [0, 1])
def test_an_engine_without_records_is_refused(
    kit: SimpleNamespace, trt: FakeTensorRT, tmp_path: Path, missing: int
) -> None:
    del trt.messages[missing]
    with pytest.raises(VerificationFailed, match="dit"):
        build(kit, tmp_path)


def test_what_the_machine_lacks_is_said(trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    tensorrt = load_backend("tensorrt")
    tensorrt.check(RTX5090)
    monkeypatch.setattr(backend, "compute_capability", lambda device=0: 90)
    with pytest.raises(EnvironmentLacks, match="here is SM90, rtx5090 is SM120"):
        tensorrt.check(RTX5090)
    monkeypatch.setattr(backend, "compute_capability", lambda device=0: None)
    with pytest.raises(EnvironmentLacks, match=r"none is visible.*tensorrt-rtx"):
        tensorrt.check(RTX5090)
    trt.__version__ = "10.9"
    with pytest.raises(EnvironmentLacks, match=r"TensorRT 10\.9 is installed"):
        tensorrt.check(RTX5090)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EnvironmentLacks, match=r"pip install .*\[tensorrt\]"):
        tensorrt.check(RTX5090)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(BadInput, match="tensorrt-rtx, tensorrt"):
        load_backend("onnx")


def test_interrupts_are_left_alone_outside_the_main_thread() -> None:
    from threading import Thread

    seen: list[bool] = []

    def body() -> None:
        with deferred_interrupt() as cancel:
            seen.append(cancel.requested)

    thread = Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [False]


@pytest.mark.gpu
@pytest.mark.trt
def test_a_real_engine_on_this_gpu(kit: SimpleNamespace, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt", reason="TensorRT 11 is not installed")
    if backend.compute_capability() != RTX5090.compute_capability:
        pytest.skip("no RTX 5090 here")
    built = build(kit, tmp_path)
    assert built.layers
