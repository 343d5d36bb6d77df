"""`lower_precision` and `lower_for_onnxruntime` against torch, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F

from fastwan.errors import BadInput
from fastwan.export.passes.expand_nvfp4 import expand_nvfp4
from fastwan.export.passes.graphs import clone
from fastwan.export.passes.lower_for_onnxruntime import lower_for_onnxruntime
from fastwan.export.passes.lower_precision import lower_precision
from fastwan.plugins.nvfp4 import BLOCK, fake_quantize_activation

SCALE = torch.randn(64, generator=torch.Generator().manual_seed(0)).bfloat16()


def rounding_graph(kit: SimpleNamespace) -> ir.Model:
    """bf16 and fp32 arithmetic with Casts both ways, moves, and an fp16 detour."""
    model: ir.Model = kit.graph(
        """g (bfloat16[32, 64] x, bfloat16[64] scale, float[64] shift, int64[2] shape)
             => (bfloat16[64, 32] y, float[64, 32] wide)
           <bfloat16[32, 64] a, float[32, 64] af, float[32, 64] b, bfloat16[32, 64] c,
            bfloat16[32, 64] d, float16[32, 64] e, float16[32, 64] e2, bfloat16[32, 64] f,
            bfloat16[64, 32] t>
        {
            a = Mul (x, scale)
            af = Cast <to: int = 1> (a)
            b = Add (af, shift)
            c = Cast <to: int = 16> (b)
            d = Add (c, a)
            e = Cast <to: int = 10> (d)
            e2 = Mul (e, e)
            f = Cast <to: int = 16> (e2)
            t = Reshape (f, shape)
            y = Add (t, t)
            wide = Cast <to: int = 1> (t)
        }""",
        scale=kit.tensor(SCALE),
        shift=ir.tensor(np.linspace(-3, 3, 64, dtype=np.float32)),
        shape=ir.tensor(np.array([64, 32])),
    )
    return model


def by_torch(x: torch.Tensor, rounding: bool) -> dict[str, torch.Tensor]:
    bf16, fp16 = (torch.bfloat16, torch.float16) if rounding else (torch.float32, torch.float32)
    shift = torch.from_numpy(np.linspace(-3, 3, 64, dtype=np.float32))
    a = x.to(bf16) * SCALE.to(bf16)
    d = (a.float() + shift).to(bf16) + a
    e = d.to(fp16)
    t = (e * e).to(bf16).reshape(64, 32)
    return {"y": (t + t).float(), "wide": t.float()}


@pytest.mark.parametrize("rounding", [True, False])
def test_rounding_is_that_of_torch(kit: SimpleNamespace, rounding: bool) -> None:
    model, changed = lower_precision(rounding_graph(kit), rounding=rounding)
    assert changed
    low = {ir.DataType.BFLOAT16, ir.DataType.FLOAT16}
    for node in model.graph:
        kinds = {v.dtype for v in (*node.inputs, *node.outputs) if v is not None}
        assert node.op_type == "Cast" or not kinds & low, node.name
    for value in (*model.graph.inputs, *model.graph.outputs):
        assert value.dtype == ir.DataType.FLOAT
    assert [value.name for value in model.graph.outputs] == ["y", "wide"]
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
    outputs = kit.run(clone(model), {"x": x})
    expected = by_torch(x, rounding)
    for name in ("y", "wide"):
        assert torch.equal(outputs[name], expected[name]), name
        assert not torch.equal(outputs[name], by_torch(x, not rounding)[name])
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert lower_precision(model, rounding=rounding)[1] is False
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_a_rounded_graph_may_still_lose_its_roundings(kit: SimpleNamespace) -> None:
    model = lower_precision(rounding_graph(kit))[0]
    assert lower_precision(model, rounding=False)[1] is True
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(kit.run(model, {"x": x})["y"], by_torch(x, False)["y"])


def test_fp32_graph_is_left_alone(kit: SimpleNamespace) -> None:
    model = kit.graph("g (float[2] x) => (float[2] y) { y = Neg (x) }")
    assert lower_precision(model) == (model, False)


def identity_linear(kit: SimpleNamespace, scale: float, kind: str = "float") -> ir.Model:
    """A linear whose weight is one: its output is its quantised activation, exactly."""
    codes = torch.eye(BLOCK, dtype=torch.uint8) * 2  # code 2 is 1.0
    packed = codes[:, 0::2] | codes[:, 1::2] << 4
    model = kit.graph(
        f"g ({kind}[1, rows, 16] x, uint8[16, 8] w, float8e4m3fn[16, 1] s, float g)"
        f"  => ({kind}[1, rows, 16] y)"
        "{ y = fastwan.NVFP4Linear <quantize_activation: int = 1> (x, w, s, g) }",
        w=None,
        s=kit.tensor(torch.ones(16, 1).to(torch.float8_e4m3fn)),
        g=ir.tensor(np.float32(1)),
    )
    next(iter(model.graph)).name = "one/MatMul"
    expand_nvfp4(model, activation_global_scale=scale)
    weight = model.graph.initializers["w"]
    weight.const_value = ir.PackedTensor(
        packed.numpy(), ir.DataType.FLOAT4E2M1, shape=ir.Shape([16, 16])
    )
    return model  # type: ignore[no-any-return]


def activations() -> torch.Tensor:
    """4.3 million values: all magnitudes, ties of e2m1 and of e4m3, zeros, subnormals, overflow."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(1 << 17, BLOCK, generator=generator)
    spread *= torch.exp2(torch.randint(-24, 14, (1 << 17, 1), generator=generator))
    spread[::97] = 0
    half = spread[: 1 << 16].bfloat16().float()
    steps = torch.randint(-24, 25, (1 << 16, BLOCK), generator=generator) / 4  # multiples of 1/4
    steps[:, 0] = 6
    scales = torch.exp2(torch.randint(-9, 8, (1 << 16, 1), generator=generator))
    mantissa = 1 + torch.randint(0, 8, (1 << 16, 1), generator=generator) / 8
    value_ties = steps * scales * mantissa
    codes = torch.arange(0x7E, dtype=torch.uint8)
    numbers = torch.cat([codes, codes + 1]).view(torch.float8_e4m3fn).float().view(2, -1)
    scale_ties = 6 * numbers.mean(0)[:, None] * torch.linspace(-1, 1, BLOCK)
    around = [torch.nextafter(scale_ties, torch.tensor(bound)) for bound in (-1e9, 1e9)]
    edges = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1e-38, 6 * 2.0**-10, 6 * 2.0**-9, 2688.0])
    edges = torch.cat([edges, torch.tensor([2689.0, -1e30, 3e38, -3e38, 6.0, 5.0, 2.5, -0.25])])
    corner = torch.stack([edges.roll(i) * 2.0**-j for i in range(16) for j in range(16)])
    return torch.cat([spread, half, value_ties, scale_ties, *around, corner])


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_fake_quantise_is_exact_on_millions_of_values(kit: SimpleNamespace, scale: float) -> None:
    x = activations()
    assert x.numel() > 4_000_000
    model = lower_for_onnxruntime(identity_linear(kit, scale))[0]
    y = kit.run(model, {"x": x[None]})["y"][0]
    expected = fake_quantize_activation(x, scale)
    assert torch.equal(y, expected)
    assert len(torch.unique(expected)) > 400  # not just zeros and saturated values


def test_bf16_activations_round_like_the_module(kit: SimpleNamespace) -> None:
    x = torch.randn(4096, BLOCK, generator=torch.Generator().manual_seed(2)).bfloat16()
    model = lower_for_onnxruntime(identity_linear(kit, 1.0, "bfloat16"))[0]
    y = kit.run(model, {"x": x[None].float()})["y"][0]
    assert torch.equal(y, fake_quantize_activation(x).bfloat16().float())


def test_quantiser_can_be_left_out(kit: SimpleNamespace) -> None:
    x = torch.randn(64, BLOCK, generator=torch.Generator().manual_seed(2))
    model = lower_for_onnxruntime(identity_linear(kit, 1.0), quantize_activations=False)[0]
    assert torch.equal(kit.run(model, {"x": x[None]})["y"][0], x)


def _no_fault(model: ir.Model) -> None:
    pass


def _node(model: ir.Model, op_type: str, index: int = 0) -> ir.Node:
    return [node for node in model.graph if node.op_type == op_type][index]


def _other_block_size(model: ir.Model) -> None:
    for node in model.graph:
        if "block_size" in node.attributes and node.domain == "":
            node.attributes["block_size"] = ir.AttrInt64("block_size", 8)


def _weight_blocks_along_the_rows(model: ir.Model) -> None:
    for node in model.graph:
        weight = node.inputs[0]
        if "axis" in node.attributes and weight is not None and weight.name == "w":
            node.attributes["axis"] = ir.AttrInt64("axis", 0)


def _not_transposed(model: ir.Model) -> None:
    _node(model, "Transpose").attributes["perm"] = ir.AttrInt64s("perm", [0, 1])


def _scale_of_another(model: ir.Model) -> None:
    """The activation is dequantised with the block scales of the weight."""
    (dequantize,) = (
        node
        for node in model.graph
        if node.op_type == "DequantizeLinear"
        and node.inputs[0] is _node(model, "TRT_FP4DynamicQuantize").outputs[1]
    )
    dequantize.replace_input_with(0, model.graph.initializers["s"])


def _operator_between(model: ir.Model) -> None:
    """The dequantised activation passes a Relu, as FP4 would be lost in an engine."""
    matmul = _node(model, "MatMul")
    rows = matmul.inputs[0]
    assert rows is not None
    relu = ir.node("Relu", [rows], name="between")
    relu.outputs[0].name, relu.outputs[0].type = "between", rows.type
    relu.outputs[0].shape = rows.shape
    model.graph.insert_before(matmul, relu)
    matmul.replace_input_with(0, relu.outputs[0])


def _unknown_node(model: ir.Model) -> None:
    node = _node(model, "TRT_FP4DynamicQuantize")
    node.op_type = "TRT_FP4QuantizeOtherwise"


FAULTS: list[Callable[[ir.Model], None]] = [
    _other_block_size,
    _weight_blocks_along_the_rows,
    _not_transposed,
    _scale_of_another,
    _operator_between,
    _unknown_node,
]


@pytest.mark.parametrize("fault", [_no_fault, *FAULTS], ids=lambda fault: fault.__name__)
def test_unknown_fp4_is_refused(kit: SimpleNamespace, fault: Callable[[ir.Model], None]) -> None:
    model = identity_linear(kit, 1.0)
    fault(model)
    if fault is _no_fault:
        lowered, changed = lower_for_onnxruntime(model)
        assert changed
        assert {node.domain for node in lowered.graph} == {""}
        assert set(lowered.graph.opset_imports) == {""}
    else:
        with pytest.raises(BadInput):
            lower_for_onnxruntime(model)


def test_lowering_again_changes_nothing(kit: SimpleNamespace) -> None:
    for rounding in (True, False):
        model = identity_linear(kit, 1.0, "bfloat16")
        assert lower_for_onnxruntime(model, rounding=rounding)[1] is True
        before = ir.to_proto(model).SerializeToString(deterministic=True)
        assert lower_for_onnxruntime(model, rounding=rounding)[1] is False
        assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_gelu_and_norm_round_where_the_graph_does(kit: SimpleNamespace) -> None:
    """Operators without a 16-bit CPU kernel compute in fp32 and round once."""
    model = kit.graph(
        """g (bfloat16[8, 64] x) => (bfloat16[8, 64] y) <bfloat16[8, 64] s>
        { s = Sigmoid (x) y = Mul (s, x) }"""
    )
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(3)).bfloat16()
    y = kit.run(lower_precision(model)[0], {"x": x.float()})["y"]
    assert kit.relative(y, F.sigmoid(x) * x) < 1e-3
    assert torch.equal(y, y.bfloat16().float())
