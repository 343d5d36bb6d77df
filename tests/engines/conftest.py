"""Small graphs with NVFP4 linears as the exporter writes them, and engines built from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, ValueInfoProto
from onnx import helper as oh

from fastwan.config import TARGETS, Target
from fastwan.engines.backend import BuildOptions, BuiltEngine
from fastwan.engines.layers import LayerRecord, TensorRecord
from fastwan.engines.source import EngineSource
from fastwan.engines.tensorrt_rtx import TensorRTRTX
from fastwan.manifest import Graph, Linear, TensorSpec
from fastwan.progress import Progress, Quiet
from testkit.manifests import write_exported

BF16 = TensorProto.BFLOAT16


def raw_tensor(name: str, dtype: int, dims: list[int], raw: bytes) -> TensorProto:
    tensor = TensorProto(name=name, data_type=dtype, raw_data=raw)
    tensor.dims.extend(dims)
    return tensor


@dataclass
class GraphBuilder:
    """Collects nodes; `quantise` and `linear` write the patterns of the exporter."""

    nodes: list[NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)
    inputs: list[ValueInfoProto] = field(default_factory=list)
    outputs: list[ValueInfoProto] = field(default_factory=list)
    seed: int = 0

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)
        self.initializers.append(raw_tensor("one", TensorProto.FLOAT, [], np.float32(1).tobytes()))

    def node(self, op: str, inputs: list[str], outputs: list[str], name: str, **rest: Any) -> None:
        self.nodes.append(oh.make_node(op, inputs, outputs, name, **rest))

    def int64(self, name: str, values: list[int]) -> None:
        raw = np.array(values, np.int64).tobytes()
        self.initializers.append(raw_tensor(name, TensorProto.INT64, [len(values)], raw))

    def quantise(self, x: str, y: str, name: str = "x") -> None:
        quantised = [f"{name}.q", f"{name}.qs"]
        settings = {"axis": -1, "block_size": 16}
        self.node(
            "TRT_FP4DynamicQuantize", [x, "one"], quantised, f"{name}/quantize",
            domain="trt", scale_type=17, **settings,
        )  # fmt: skip
        self.node("DequantizeLinear", [f"{name}.qs", "one"], [f"{name}.sf"], f"{name}/scale")
        self.node(
            "DequantizeLinear", [f"{name}.q", f"{name}.sf"], [f"{name}.f"], f"{name}/values",
            **settings,
        )  # fmt: skip
        self.node("Cast", [f"{name}.f"], [y], f"{name}/cast", to=BF16)

    def weight(self, name: str, n: int, k: int) -> None:
        codes = self._rng.integers(0, 256, n * k // 2, dtype=np.uint8).tobytes()
        scales = self._rng.integers(0x30, 0x40, n * k // 16, dtype=np.uint8).tobytes()
        self.initializers += [
            raw_tensor(f"{name}.weight", TensorProto.FLOAT4E2M1, [n, k], codes),
            raw_tensor(f"{name}.ws", TensorProto.FLOAT8E4M3FN, [n, k // 16], scales),
            raw_tensor(f"{name}.g", TensorProto.FLOAT, [], np.float32(0.01).tobytes()),
        ]

    def linear(self, name: str, x: str, y: str, n: int, k: int) -> None:
        self.weight(name, n, k)
        self.node("DequantizeLinear", [f"{name}.ws", f"{name}.g"], [f"{name}.s"], f"{name}/scale")
        self.node(
            "DequantizeLinear", [f"{name}.weight", f"{name}.s"], [f"{name}.wf"], f"{name}/weight",
            axis=-1, block_size=16,
        )  # fmt: skip
        self.node("Cast", [f"{name}.wf"], [f"{name}.wb"], f"{name}/cast", to=BF16)
        self.node("Transpose", [f"{name}.wb"], [f"{name}.wt"], f"{name}/transposed", perm=[1, 0])
        self.node("MatMul", [x, f"{name}.wt"], [y], f"{name}/MatMul")

    def model(self, name: str = "graph") -> onnx.ModelProto:
        graph = oh.make_graph(self.nodes, name, self.inputs, self.outputs, self.initializers)
        opsets = [oh.make_opsetid("", 23), oh.make_opsetid("trt", 1)]
        return oh.make_model(graph, opset_imports=opsets, ir_version=11)


def value(name: str, shape: list[int | str], dtype: int = BF16) -> ValueInfoProto:
    return oh.make_tensor_value_info(name, dtype, shape)


def linear_record(name: str) -> Linear:
    return Linear(name=name, node=f"{name}/MatMul", sources=(name,), format="nvfp4")


M, K, N = 128, 256, 512


def fp4_graph(between: str | None = None, tokens: int | str = M) -> onnx.ModelProto:
    """x [1, M, K] -> quantise -> linear ``a`` -> y [1, M, N], with a fault `between`."""
    graph = GraphBuilder()
    graph.inputs.append(value("x", [1, tokens, K]))
    graph.outputs.append(value("y", [1, tokens, N]))
    graph.quantise("x", "xq")
    graph.linear("a", "xq", "y", N, K)
    FAULTS[between](graph)
    return graph.model()


def _none(graph: GraphBuilder) -> None:
    pass


def _node_at(graph: GraphBuilder, name: str) -> int:
    return next(i for i, node in enumerate(graph.nodes) if node.name == name)


def _reshape_weight(graph: GraphBuilder) -> None:
    """The weight is stored as [N, 2, K/2] and reshaped behind its DequantizeLinear."""
    for tensor in graph.initializers:
        if tensor.name in ("a.weight", "a.ws"):
            n, k = tensor.dims
            del tensor.dims[:]
            tensor.dims.extend([n, 2, k // 2])
    graph.int64("shape", [N, K])
    at = _node_at(graph, "a/transposed")
    graph.nodes[at].input[0] = "a.wr"
    graph.nodes.insert(at, oh.make_node("Reshape", ["a.wb", "shape"], ["a.wr"], "a/reshape"))


def _weight_input(graph: GraphBuilder) -> None:
    """The FP4 weight is a graph input."""
    graph.initializers = [t for t in graph.initializers if t.name != "a.weight"]
    graph.inputs.append(value("a.weight", [N, K], TensorProto.FLOAT4E2M1))


def _relu(graph: GraphBuilder) -> None:
    """An operator stands between the activation's DequantizeLinear and the MatMul."""
    at = _node_at(graph, "a/MatMul")
    graph.nodes[at].input[0] = "xr"
    graph.nodes.insert(at, oh.make_node("Relu", ["xq"], ["xr"], "x/relu"))


def _no_quantise(graph: GraphBuilder) -> None:
    """The activation is not quantised at all."""
    graph.nodes[_node_at(graph, "a/MatMul")].input[0] = "x"


FAULTS: dict[str | None, Callable[[GraphBuilder], None]] = {
    None: _none,
    "reshape_weight": _reshape_weight,
    "weight_input": _weight_input,
    "relu": _relu,
    "no_quantise": _no_quantise,
}


SETTINGS: dict[str, Any] = {
    "component": "dit", "cadence": "step", "linears": (linear_record("a"),),
}  # fmt: skip
"""Of the sources over `fp4_graph`."""


def source_of(model: onnx.ModelProto, folder: Path, name: str = "dit", **rest: Any) -> EngineSource:
    settings: dict[str, Any] = SETTINGS | rest
    return EngineSource(
        name=name, model=model.SerializeToString(deterministic=True), base_dir=folder, **settings
    )


def record(
    name: str,
    kind: str = "gemm",
    *,
    inputs: list[tuple[str, tuple[int, ...]]],
    constants: list[tuple[str, tuple[int, ...]]] | None = None,
    outputs: list[tuple[str, tuple[int, ...]]],
    nodes: tuple[str, ...] = (),
) -> LayerRecord:
    """A layer record with tensors given as (dtype, shape)."""

    def tensors(items: list[tuple[str, tuple[int, ...]]], role: str) -> tuple[TensorRecord, ...]:
        return tuple(
            TensorRecord(f"{name}.{role}{i}", dtype, shape)
            for i, (dtype, shape) in enumerate(items)
        )

    return LayerRecord(
        name=name,
        type=kind,
        inputs=tensors(inputs, "in"),
        constants=tensors(constants or [], "const"),
        outputs=tensors(outputs, "out"),
        tactic="",
        nodes=nodes,
    )


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """The helpers of this file."""
    return SimpleNamespace(
        M=M, K=K, N=N, graph=fp4_graph, source=source_of, linear=linear_record, record=record,
        GraphBuilder=GraphBuilder, value=value, raw_tensor=raw_tensor, BF16=BF16,
    )  # fmt: skip


@pytest.fixture(scope="session")
def build(builder: TensorRTRTX) -> Callable[..., BuiltEngine]:
    """Build a source with the real builder."""

    def build(source: EngineSource, target: str = "rtx5090") -> BuiltEngine:
        return builder.build(source, BuildOptions(TARGETS[target]), Quiet())

    return build


class FakeBackend:
    """A backend that answers at once with given records; counts its builds."""

    name = "tensorrt-rtx"
    takes_plugins = False

    def __init__(self, layers: tuple[LayerRecord, ...], plan: bytes = b"plan") -> None:
        self.layers = layers
        self.plan = plan
        self.built: list[str] = []
        self.fail_on: str | None = None
        self.at_once = 1
        self.closed = 0

    def version(self) -> str:
        return "0.fake"

    def check(self, target: Target) -> None:
        pass

    def jobs(self) -> int:
        return self.at_once

    def close(self) -> None:
        self.closed += 1

    def build(self, source: EngineSource, options: BuildOptions, progress: Progress) -> BuiltEngine:
        if source.name == self.fail_on:
            raise KeyboardInterrupt
        self.built.append(source.name)
        x, y = (
            TensorSpec(name=f"{source.name}.{name}", dtype="bfloat16", shape=(1, M, K))
            for name in ("x", "y")
        )
        plan = memoryview(self.plan + source.name.encode())
        return BuiltEngine(plan, self.layers, 1024, (x,), (y,))


def fp4_gemm(nodes: tuple[str, ...] = ("a/MatMul",), n: int = N) -> LayerRecord:
    return record(
        f"{nodes[0]}_myl0_1",
        inputs=[("FP4E2M1", (1, M, K)), ("FP8", (1, 1, 4, 32, 4, 4))],
        constants=[("FP4E2M1", (1, K, n)), ("Float", (1,)), ("FP8", (1, 4, 4, 4, 4, 32))],
        outputs=[("BFloat16", (1, M, n))],
        nodes=nodes,
    )


@pytest.fixture
def fake_backend() -> FakeBackend:
    return FakeBackend((fp4_gemm(),))


@pytest.fixture
def fp4_record() -> Callable[..., LayerRecord]:
    return fp4_gemm


@pytest.fixture
def onnx_bundle(tmp_path: Path) -> Path:
    """An ONNX bundle of one graph, ``dit``, with its weight in ``dit.data``."""
    folder = tmp_path / "onnx_bundle"
    folder.mkdir()
    model = fp4_graph()
    data = b""
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > 1000:
            onnx.external_data_helper.set_external_data(
                tensor, "dit.data", len(data), len(tensor.raw_data)
            )
            data += tensor.raw_data
            tensor.ClearField("raw_data")
    (folder / "dit.data").write_bytes(data)
    (folder / "dit.onnx").write_bytes(model.SerializeToString(deterministic=True))
    graph = Graph(
        file="dit.onnx",
        data=("dit.data",),
        inputs=(TensorSpec(name="x", dtype="bfloat16", shape=(1, M, K)),),
        outputs=(TensorSpec(name="y", dtype="bfloat16", shape=(1, M, N)),),
        linears=(linear_record("a"),),
    )
    write_exported(folder, {"dit": graph})
    return folder


@pytest.fixture
def bundle_source(onnx_bundle: Path) -> Callable[..., EngineSource]:
    """Sources over the ONNX bundle's graph."""

    def make(name: str = "dit", **rest: Any) -> EngineSource:
        settings: dict[str, Any] = SETTINGS | rest
        model = (onnx_bundle / "dit.onnx").read_bytes()
        return EngineSource(name=name, model=model, base_dir=onnx_bundle, **settings)

    return make
