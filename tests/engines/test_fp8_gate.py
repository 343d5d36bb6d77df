"""FP8 that a builder loses is found: in the graph, in an engine's linears, in its attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from fastwan.config import TARGETS
from fastwan.engines.backend import BuildOptions, BuiltEngine
from fastwan.engines.coverage import check_attention, check_coverage, check_onnx_linears
from fastwan.engines.source import EngineSource
from fastwan.errors import VerificationFailed
from fastwan.export.attentions import Form, find_attention
from fastwan.export.attentions.fp8 import FP8 as FP8_FORM
from fastwan.export.attentions.native import SDPA
from fastwan.export.composer import Composer
from fastwan.export.fp8 import quantize_weight
from fastwan.export.linear_names import name_linears
from fastwan.export.models.layers import Linear as LinearModule
from fastwan.export.passes.lower_attention import lower_attention
from fastwan.export.recipes import FP8
from fastwan.export.tracing import trace
from fastwan.manifest import Linear
from fastwan.progress import Quiet

LENGTH, WIDTH, OUT, HEADS = 256, 256, 384, 2
LINEAR = Linear(name="a", node="a/MatMul", sources=("a",), format="fp8")
GPUS = ["rtx4090", "rtx5090"]


@cache
def sound(activation: str) -> bytes:
    """x [1, 256, 256] -> linear ``a`` in FP8 -> y, as the exporter writes it."""
    recipe = FP8().with_activation(activation, {"a": 0.02})
    module = LinearModule(WIDTH, OUT, recipe, torch.bfloat16, bias=False, tokens=180)
    traced = trace(
        module.eval(),
        (torch.empty(1, LENGTH, WIDTH, dtype=torch.bfloat16),),
        name="linear", inputs=["x"], outputs=["y"], translations=recipe.translations(),
    )  # fmt: skip
    compose = Composer("linear", {"fastwan": 1})
    x = compose.input(traced, "x")
    (y,) = compose.add(traced, "a.", {"x": x}, "")
    for name, value in list(compose.graph.initializers.items()):
        value.name = f"a.{name.rpartition('.')[2]}"
    name_linears(compose.graph, recipe)
    model = recipe.expand(compose.model({"y": y}))[0]
    generator = torch.Generator().manual_seed(0)
    codes, scale = quantize_weight(torch.randn(OUT, WIDTH, generator=generator).bfloat16())
    values = {"a.weight": codes.view(torch.uint8).numpy(), "a.weight_scale": scale.numpy()}
    for name, array in values.items():
        held = model.graph.initializers[name]
        kind = held.dtype.numpy()
        held.const_value = ir.Tensor(array.view(kind) if array.dtype.itemsize == 1 else array,
                                     dtype=held.dtype, name=name)  # fmt: skip
    del model.graph.opset_imports["fastwan"]
    return bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def graph(fault: str = "", activation: str = "per_token") -> onnx.ModelProto:
    model = onnx.load_model_from_string(sound(activation))
    FAULTS[fault](model)
    return model


def node(model: onnx.ModelProto, end: str) -> onnx.NodeProto:
    (found,) = (each for each in model.graph.node if each.name.endswith(end))
    return found


def _computed_scale(model: onnx.ModelProto) -> None:
    """The true scale of the tensor stands in the nodes, as in the ONNX of other exporters."""
    empty = onnx.numpy_helper.from_array(np.zeros(0, np.int64), "empty")
    model.graph.initializer.append(empty)
    scale = helper.make_node("Reshape", [node(model, "/divisor").output[0], "empty"], ["scale"])
    model.graph.node.insert(list(model.graph.node).index(node(model, "/quantize")), scale)
    for end in ("/quantize", "/values"):
        node(model, end).input[1] = "scale"
    node(model, "/quantize").input[0] = "x"


def _no_quantiser(model: onnx.ModelProto) -> None:
    node(model, "a/MatMul").input[0] = "x"


def _scaled_weight(model: onnx.ModelProto) -> None:
    two = onnx.numpy_helper.from_array(np.array(2, np.float32))
    two.name = "two"
    model.graph.initializer.append(two)
    bf16 = helper.make_node("Cast", ["two"], ["two_bf16"], name="two", to=TensorProto.BFLOAT16)
    model.graph.node.insert(0, bf16)
    node(model, "a/weight").input[1] = "two_bf16"


def _relu(model: onnx.ModelProto) -> None:
    matmul = node(model, "a/MatMul")
    at = list(model.graph.node).index(matmul)
    relu = helper.make_node("Relu", [matmul.input[0]], ["x/relu"], name="x/relu")
    matmul.input[0] = "x/relu"
    model.graph.node.insert(at, relu)


FAULTS: dict[str, Callable[[onnx.ModelProto], None]] = {
    "": lambda model: None,
    "computed scale": _computed_scale,
    "no quantiser": _no_quantiser,
    "relu": _relu,
    "scaled weight": _scaled_weight,
}
IN_GRAPH = {
    "computed scale": "of its activation has not the constant scale 1",
    "no quantiser": "no DequantizeLinear stands between its activation",
    "relu": "no DequantizeLinear stands between its activation",
    "scaled weight": "of its weight has not the constant scale 1",
}
LOST = {"computed scale": "BFloat16 GEMM __myl_Fc", "no quantiser": "BFloat16 GEMM"}
"""Faults by which the builder loses FP8, and what it builds instead."""


@pytest.mark.parametrize("fault", FAULTS)
def test_the_graph_is_held_to_constant_scales(fault: str) -> None:
    if not fault:
        assert check_onnx_linears(graph(), [LINEAR]) == {"a/MatMul": OUT * WIDTH}
        return
    with pytest.raises(VerificationFailed, match=f"1 targeted linear not FP8 .*{IN_GRAPH[fault]}"):
        check_onnx_linears(graph(fault), [LINEAR])


def build(builder: Any, model: onnx.ModelProto, gpu: str, folder: Path) -> BuiltEngine:
    source = EngineSource("g", "dit", model.SerializeToString(), folder, "step")
    built: BuiltEngine = builder.build(source, BuildOptions(TARGETS[gpu]), Quiet())
    return built


@pytest.mark.trt
@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("activation", ["per_token", "per_tensor"])
def test_a_sound_graph_becomes_an_fp8_gemm(
    builder: Any, tmp_path: Path, gpu: str, activation: str
) -> None:
    model = graph(activation=activation)
    built = build(builder, model, gpu, tmp_path)
    coverage = check_coverage(built.layers, [LINEAR], check_onnx_linears(model, [LINEAR]))
    assert coverage.covered == (LINEAR,)
    coverage.require("g")


@pytest.mark.trt
@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("fault", LOST)
def test_a_linear_that_the_builder_lost_is_found_in_the_engine(
    builder: Any, tmp_path: Path, gpu: str, fault: str
) -> None:
    built = build(builder, graph(fault, "per_tensor"), gpu, tmp_path)
    if fault == "computed scale":
        assert "runtime_fusion" in {layer.type for layer in built.layers}
    coverage = check_coverage(built.layers, [LINEAR], {"a/MatMul": OUT * WIDTH})
    with pytest.raises(VerificationFailed, match=f"a: {LOST[fault]}") as refused:
        coverage.require("g")
    assert refused.value.exit_code == 4


def attention(form: Form) -> onnx.ModelProto:
    """An attention node of 180 tokens, lowered to a form."""
    bf16, fp32 = ir.DataType.BFLOAT16, ir.DataType.FLOAT
    shapes = [
        ("qkv", bf16, [1, LENGTH, 3 * WIDTH]), ("qkv_scale", fp32, [3]),
        ("qkv_bias", bf16, [3 * WIDTH]), ("q_norm", bf16, [WIDTH]), ("k_norm", bf16, [WIDTH]),
        ("rope_cos", fp32, [LENGTH, 64]), ("rope_sin", fp32, [LENGTH, 64]),
    ]  # fmt: skip
    inputs = [ir.Value(name=n, type=ir.TensorType(t), shape=ir.Shape(s)) for n, t, s in shapes]
    attributes = {
        "num_heads": HEADS, "num_tokens": 180, "eps": 1e-6, "softmax_scale": 128**-0.5,
        "exact_max": 0,
    }  # fmt: skip
    made = ir.node("SageAttention3", inputs, attributes, domain="fastwan", name="blocks.0.attn")
    out = made.outputs[0]
    out.name, out.type = "blocks.0.attn", ir.TensorType(bf16)
    out.shape = ir.Shape([1, LENGTH, WIDTH])
    opsets = {"": 23, "fastwan": 1}
    model = ir.Model(ir.Graph(inputs, [out], nodes=[made], opset_imports=opsets), ir_version=11)
    lower_attention(model, form)
    del model.graph.opset_imports["fastwan"]
    return ir.to_proto(model)


def _no_softmax(*inputs: Tensor, **attributes: Any) -> Tensor:
    """The form with something else between its MatMuls."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "softmax", lambda x, axis: torch.sigmoid(x))
        return FP8_FORM.compute(*inputs, **attributes)


def _unrounded(*inputs: Tensor, **attributes: Any) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastwan.export.fp8.round_e4m3", lambda x, scale: x)
        return FP8_FORM.compute(*inputs, **attributes)


ATTENTIONS = {
    "": (FP8_FORM, ""),
    "no softmax": (Form("fp8", _no_softmax), "is no fused kernel"),
    "not quantised": (Form("fp8", _unrounded), "multiplies BFloat16"),
}


@pytest.mark.trt
@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("fault", ATTENTIONS)
def test_an_attention_is_one_fp8_kernel_or_refused(
    builder: Any, tmp_path: Path, gpu: str, fault: str
) -> None:
    form, message = ATTENTIONS[fault]
    model = attention(form)
    built = build(builder, model, gpu, tmp_path)
    squares = [t for layer in built.layers for t in layer.tensors if t.shape[-2:] == (180, 180)]
    if not fault:
        check_attention(find_attention("fp8"), model, built.layers)
        assert squares == []
        return
    with pytest.raises(VerificationFailed, match=f"1 attentions .*{message}") as refused:
        check_attention(find_attention("fp8"), model, built.layers)
    assert refused.value.exit_code == 4


@pytest.mark.trt
def test_native_attention_asks_nothing_of_an_engine(builder: Any, tmp_path: Path) -> None:
    model = attention(SDPA)
    built = build(builder, model, "rtx4090", tmp_path)
    check_attention(find_attention("native"), model, built.layers)
    assert find_attention("fp8").faults([n.name for n in model.graph.node], built.layers) == []
