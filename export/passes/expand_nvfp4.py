"""Expand ``fastwan::NVFP4Linear`` to the quantise/dequantise nodes that TensorRT fuses to FP4."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from fastwan.export.passes.graphs import FASTWAN, constant, insert_before, required_inputs
from fastwan.export.recipes.nvfp4 import BLOCK, QUANTISE

E4M3 = int(ir.DataType.FLOAT8E4M3FN)


def expand_nvfp4(model: ir.Model, *, activation_global_scale: float = 1.0) -> tuple[ir.Model, bool]:
    """Replace each NVFP4 linear by what TensorRT's builder turns into one FP4 GEMM.

    Requires: weight, scales and global scale of each linear are initializers; the weight's
    initializer is declared uint8 [N, K/2] as traced.

    Ensures: weight FLOAT4E2M1 [N, K] dequantised by its e4m3 block scales and fp32 global scale;
    activation through ``trt::TRT_FP4DynamicQuantize`` with its static global scale, once for all
    linears that read the same value; a MatMul with the linear's node name and output.

    Args:
        model: changed in place.
        activation_global_scale: of the recipe.
    """
    graph = model.graph
    static = ir.tensor(np.float32(activation_global_scale))
    quantized: dict[ir.Value, ir.Value] = {}
    changed = False
    for node in list(graph):
        if node.domain != FASTWAN or node.op_type != "NVFP4Linear":
            continue
        x, weight, block_scale, global_scale = required_inputs(node)
        prefix = str(node.name).removesuffix("/MatMul")
        rows = x
        if node.attributes["quantize_activation"].as_int():
            if x not in quantized:
                quantized[x] = _quantize_activation(graph, node, x, static)
            rows = quantized[x]
        if weight.dtype != ir.DataType.FLOAT4E2M1:
            outputs, pairs = weight.shape.numpy()  # type: ignore[union-attr]
            # A new type: the old one may be shared with values of other graphs.
            weight.type = ir.TensorType(ir.DataType.FLOAT4E2M1)
            weight.shape = ir.Shape([outputs, pairs * 2])
        shape = list(weight.shape.numpy())  # type: ignore[union-attr]
        scale = _dequantize(f"{prefix}/weight_scale", block_scale, global_scale)
        values = _dequantize(f"{prefix}/weight", weight, scale.outputs[0], block=True)
        cast = ir.node(
            "Cast", [values.outputs[0]], {"to": int(x.dtype or 0)}, name=f"{prefix}/bf16"
        )
        transpose = ir.node(
            "Transpose", [cast.outputs[0]], {"perm": [1, 0]}, name=f"{prefix}/transposed"
        )
        matmul = ir.node("MatMul", [rows, transpose.outputs[0]], name=str(node.name))
        _declare(scale, ir.DataType.FLOAT, [shape[0], shape[1] // BLOCK])
        _declare(values, ir.DataType.FLOAT, shape)
        _declare(cast, x.dtype, shape)
        _declare(transpose, x.dtype, shape[::-1])
        insert_before(node, [scale, values, cast, transpose, matmul])
        old = node.outputs[0]
        new = matmul.outputs[0]
        new.type, new.shape = old.type, old.shape
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        new.name = old.name
        graph.remove(node, safe=True)
        changed = True
    if changed:
        graph.opset_imports[QUANTISE[0]] = 1
    return model, changed


def _quantize_activation(
    graph: ir.Graph, anchor: ir.Node, x: ir.Value, static: ir.TensorProtocol
) -> ir.Value:
    """Dynamic quantisation of `x` and back; returns the dequantised value in the dtype of `x`."""
    global_scale = constant(graph, "activation_global_scale", static)
    prefix = f"{x.name}/fp4"
    quantize = ir.Node(
        *QUANTISE,
        [x, global_scale],
        [
            ir.AttrInt64("axis", -1),
            ir.AttrInt64("block_size", BLOCK),
            ir.AttrInt64("scale_type", E4M3),
        ],
        num_outputs=2,
        name=f"{prefix}/quantize",
    )
    scale = _dequantize(f"{prefix}/scale", quantize.outputs[1], global_scale)
    values = _dequantize(f"{prefix}/values", quantize.outputs[0], scale.outputs[0], block=True)
    cast = ir.node("Cast", [values.outputs[0]], {"to": int(x.dtype or 0)}, name=f"{prefix}/bf16")
    assert x.shape is not None
    *lead, width = x.shape  # a leading axis may be dynamic
    assert isinstance(width, int)
    shape, blocks = [*lead, width], [*lead, width // BLOCK]
    for value, dtype, dims in (
        (quantize.outputs[0], ir.DataType.FLOAT4E2M1, shape),
        (quantize.outputs[1], ir.DataType.FLOAT8E4M3FN, blocks),
    ):
        value.type, value.shape = ir.TensorType(dtype), ir.Shape(dims)
    quantize.outputs[0].name, quantize.outputs[1].name = f"{prefix}/codes", f"{prefix}/block_scale"
    _declare(scale, ir.DataType.FLOAT, blocks)
    _declare(values, ir.DataType.FLOAT, shape)
    _declare(cast, x.dtype, shape)
    insert_before(anchor, [quantize, scale, values, cast])
    return cast.outputs[0]


def _dequantize(name: str, x: ir.Value, scale: ir.Value, *, block: bool = False) -> ir.Node:
    attributes = {"axis": -1, "block_size": BLOCK} if block else {}
    return ir.node("DequantizeLinear", [x, scale], attributes, name=name)


def _declare(
    node: ir.Node, dtype: ir.DataType | None, shape: Sequence[int | ir.SymbolicDim]
) -> None:
    value = node.outputs[0]
    value.name = f"{node.name}/out"
    value.type = None if dtype is None else ir.TensorType(dtype)
    value.shape = ir.Shape(shape)
