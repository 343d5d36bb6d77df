"""`expand_nvfp4` on small graphs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from fastwan.export.passes.expand_nvfp4 import expand_nvfp4
from fastwan.export.passes.graphs import clone
from fastwan.export.passes.lower_for_onnxruntime import lower_for_onnxruntime
from fastwan.plugins.nvfp4 import dequantize_weight, fake_quantize_activation, quantize_weight

WEIGHTS = [
    torch.randn(16, 32, generator=torch.Generator().manual_seed(seed)) * 0.1 for seed in range(2)
]


def linears(
    kit: SimpleNamespace, first: int = 1, second: int = 1, tied: bool = False, rows: str = "T"
) -> ir.Model:
    """Two NVFP4 linears that read the same activation."""
    other = "w0, s0, g0" if tied else "w1, s1, g1"
    tensors = {}
    for index, weight in enumerate(WEIGHTS[:1] if tied else WEIGHTS):
        packed = quantize_weight(weight)
        for name, value in zip("wsg", packed, strict=True):
            tensors[f"{name}{index}"] = kit.tensor(value)
    declared = ", ".join(
        f"uint8[16, 16] w{i}, float8e4m3fn[16, 2] s{i}, float g{i}" for i in range(1 if tied else 2)
    )
    model: ir.Model = kit.graph(
        f"g (float[1, {rows}, 32] x, {declared})"
        f"  => (float[1, {rows}, 16] p, float[1, {rows}, 16] q)"
        f"{{ p = fastwan.NVFP4Linear <quantize_activation: int = {first}> (x, w0, s0, g0)"
        f"  q = fastwan.NVFP4Linear <quantize_activation: int = {second}> (x, {other}) }}",
        **tensors,
    )
    for node, name in zip(model.graph, "ab", strict=True):
        node.name = f"{name}/MatMul"
    return model


def _count(model: ir.Model, op_type: str) -> int:
    return sum(node.op_type == op_type for node in model.graph)


def test_consumers_share_one_quantiser_and_the_leading_axis_may_be_dynamic(
    kit: SimpleNamespace,
) -> None:
    model, changed = expand_nvfp4(linears(kit))
    assert changed
    assert model.graph.opset_imports["trt"] == 1
    assert _count(model, "TRT_FP4DynamicQuantize") == 1
    assert _count(model, "DequantizeLinear") == 2 + 2 * 2
    assert not [node for node in model.graph if node.domain == "fastwan"]
    nodes = {node.name: node for node in model.graph}
    for name, output in (("a/MatMul", "p"), ("b/MatMul", "q")):
        matmul = nodes[name]
        assert matmul.op_type == "MatMul"
        assert matmul.outputs[0].name == output
        assert matmul.outputs[0] in model.graph.outputs
    assert nodes["a/MatMul"].inputs[0] is nodes["b/MatMul"].inputs[0]
    (quantise,) = (n for n in model.graph if n.op_type == "TRT_FP4DynamicQuantize")
    settings = {name: a.value for name, a in quantise.attributes.items()}
    assert settings == {"axis": -1, "block_size": 16, "scale_type": 17}
    codes, scale = quantise.outputs
    assert (codes.dtype, str(codes.shape)) == (ir.DataType.FLOAT4E2M1, "[1,T,32]")
    assert (scale.dtype, str(scale.shape)) == (ir.DataType.FLOAT8E4M3FN, "[1,T,2]")
    for index in range(2):
        weight = model.graph.initializers[f"w{index}"]
        assert (weight.dtype, str(weight.shape)) == (ir.DataType.FLOAT4E2M1, "[16,32]")
    assert expand_nvfp4(model)[1] is False


@pytest.mark.parametrize(("first", "second"), [(1, 0), (0, 1), (0, 0), (1, 1)])
@pytest.mark.parametrize("tied", [False, True])
def test_expanded_linears_compute_what_they_should(
    kit: SimpleNamespace, first: int, second: int, tied: bool
) -> None:
    model = expand_nvfp4(linears(kit, first, second, tied, rows="5"))[0]
    assert _count(model, "TRT_FP4DynamicQuantize") == int(first or second)
    x = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(9))
    outputs = kit.run(lower_for_onnxruntime(_stored_as_fp4(model))[0], {"x": x})
    for name, quantised, weight in (("p", first, 0), ("q", second, 0 if tied else 1)):
        rows = fake_quantize_activation(x) if quantised else x
        matrix = dequantize_weight(quantize_weight(WEIGHTS[weight])).double()
        assert kit.relative(outputs[name], rows.double() @ matrix.t()) < 1e-6


def _stored_as_fp4(model: ir.Model) -> ir.Model:
    """The bytes of each FP4 weight under their new type, as the exporter attaches them."""
    for value in model.graph.initializers.values():
        if value.dtype == ir.DataType.FLOAT4E2M1:
            assert value.shape is not None
            tensor: Any = value.const_value
            value.const_value = ir.PackedTensor(
                tensor.numpy(), ir.DataType.FLOAT4E2M1, shape=value.shape
            )
    return model


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_activation_scale_is_carried(kit: SimpleNamespace, scale: float) -> None:
    model = expand_nvfp4(linears(kit, rows="5"), activation_global_scale=scale)[0]
    (quantise,) = (n for n in model.graph if n.op_type == "TRT_FP4DynamicQuantize")
    held = quantise.inputs[1]
    assert held is not None
    assert held.const_value is not None
    assert held.const_value.numpy() == np.float32(scale)
    x = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(9)) * 1e-2
    y = kit.run(lower_for_onnxruntime(_stored_as_fp4(model))[0], {"x": x})["p"]
    matrix = dequantize_weight(quantize_weight(WEIGHTS[0])).double()
    for other in (1.0, 0.25):
        expected = fake_quantize_activation(x, other).double() @ matrix.t()
        assert (kit.relative(y, expected) < 1e-6) == (other == scale)


def test_expanding_a_copy_leaves_the_original_alone(kit: SimpleNamespace) -> None:
    model = linears(kit)
    assert expand_nvfp4(clone(model))[1]
    assert model.graph.initializers["w0"].dtype == ir.DataType.UINT8
    assert str(model.graph.initializers["w0"].shape) == "[16,16]"
    assert _count(model, "NVFP4Linear") == 2
