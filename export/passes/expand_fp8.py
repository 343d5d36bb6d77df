"""Expand ``fastwan::FP8Linear`` to the nodes that TensorRT builds an FP8 GEMM of."""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import onnx_ir as ir

from fastwan.export.fp8 import E4M3_MAX, SMALLEST_SCALE
from fastwan.export.passes.graphs import FASTWAN, constant, insert_before
from fastwan.export.recipes.fp8_operator import PER_TENSOR

_E4M3 = ir.DataType.FLOAT8E4M3FN
_FLOAT = ir.DataType.FLOAT


def expand_fp8(model: ir.Model) -> tuple[ir.Model, bool]:
    """Replace each FP8 linear by what TensorRT's builder turns into one FP8 GEMM.

    Requires: weight and scales of each linear are initializers; activations have three axes.

    Ensures: ``Q = QuantizeLinear(x / scale, 1)``, ``MatMul(DequantizeLinear(Q, 1),
    Transpose(DequantizeLinear(codes, 1)))`` with the linear's node name, and behind it the product
    with both scales in fp32; the linear's output keeps its name. An activation is quantised once
    for all linears that read it with one scale.

    Args:
        model: changed in place.
    """
    quantised: dict[tuple[object, ...], tuple[ir.Value, ir.Value | None]] = {}
    changed = False
    for node in list(model.graph):
        if node.domain == FASTWAN and node.op_type == "FP8Linear":
            _expand(model.graph, node, quantised)
            changed = True
    return model, changed


class _Nodes:
    """Makes named nodes before an anchor, each with one output of a declared type."""

    def __init__(self, graph: ir.Graph, anchor: ir.Node, prefix: str) -> None:
        self.graph, self.anchor, self.prefix = graph, anchor, prefix

    def __call__(
        self,
        name: str,
        op_type: str,
        inputs: list[ir.Value],
        dtype: ir.DataType | None,
        shape: Sequence[int | ir.SymbolicDim],
        **attributes: object,
    ) -> ir.Value:
        node = ir.node(op_type, inputs, attributes or None, name=f"{self.prefix}/{name}")  # type: ignore[arg-type]
        value = node.outputs[0]
        value.name = f"{node.name}/out"
        value.type = None if dtype is None else ir.TensorType(dtype)
        value.shape = ir.Shape(shape)
        insert_before(self.anchor, [node])
        return value

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        return constant(self.graph, f"fp8/{name}", ir.tensor(array))

    def one(self, dtype: ir.DataType | None) -> ir.Value:
        kind = np.dtype(ml_dtypes.bfloat16 if dtype == ir.DataType.BFLOAT16 else np.float32)
        return self.constant(f"one_{kind.name}", np.ones((), kind))


def _expand(
    graph: ir.Graph,
    node: ir.Node,
    quantised: dict[tuple[object, ...], tuple[ir.Value, ir.Value | None]],
) -> None:
    x, weight, weight_scale = node.inputs[:3]
    static = node.inputs[3] if len(node.inputs) > 3 else None
    assert x is not None
    assert weight is not None
    assert weight_scale is not None
    assert x.shape is not None
    rows, factor = x, weight_scale
    name = str(node.name).removesuffix("/MatMul")
    make = _Nodes(graph, node, name)
    if node.attributes["quantize_activation"].as_int():
        activation = node.attributes["activation"].as_string()
        tokens = node.attributes["tokens"].as_int()
        key = (x, static, activation, tokens)
        if key not in quantised:
            prefix = f"{x.name}/fp8" if static is None else f"{name}/input"
            quantised[key] = _quantise(
                _Nodes(graph, node, prefix), x, static, activation == PER_TENSOR, tokens
            )
        rows, scale = quantised[key]
        if scale is not None:
            shape = list(scale.shape or [])
            factor = make("factor", "Mul", [scale, weight_scale], _FLOAT, shape)
    n, k = weight.shape.numpy()  # type: ignore[union-attr]
    values = make("weight", "DequantizeLinear", [weight, make.one(x.dtype)], x.dtype, [n, k])
    transposed = make("transposed", "Transpose", [values], x.dtype, [k, n], perm=[1, 0])
    shape = [*list(x.shape)[:-1], n]
    product = make("MatMul", "MatMul", [rows, transposed], x.dtype, shape)
    wide = make("wide", "Cast", [product], _FLOAT, shape, to=int(_FLOAT))
    scaled = make("scaled", "Mul", [wide, factor], _FLOAT, shape)
    result = make("rounded", "Cast", [scaled], x.dtype, shape, to=int(x.dtype or 0))
    old = node.outputs[0]
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    result.name = old.name


def _quantise(
    make: _Nodes, x: ir.Value, static: ir.Value | None, per_tensor: bool, tokens: int
) -> tuple[ir.Value, ir.Value]:
    """`x` as e4m3 values under its scale, in its own dtype; and the fp32 scale."""
    assert x.shape is not None
    shape = list(x.shape)
    scale = static if static is not None else _scale(make, x, per_tensor, tokens)
    dims = list(scale.shape or [])
    divisor = make("divisor", "Cast", [scale], x.dtype, dims, to=int(x.dtype or 0))
    divided = make("divided", "Div", [x, divisor], x.dtype, shape)
    one = make.one(x.dtype)
    codes = make(
        "quantize", "QuantizeLinear", [divided, one], _E4M3, shape, output_dtype=int(_E4M3)
    )
    return make("values", "DequantizeLinear", [codes, one], x.dtype, shape), scale


def _scale(make: _Nodes, x: ir.Value, per_tensor: bool, tokens: int) -> ir.Value:
    """The computed scale: of each row, or of the rows that are no padding together."""
    assert x.shape is not None
    shape: list[int | ir.SymbolicDim] = [*list(x.shape)[:-1], 1]
    magnitude = make("magnitude", "Abs", [x], x.dtype, list(x.shape))
    last = make.constant("last_axis", np.array([-1]))
    amax = make("amax", "ReduceMax", [magnitude, last], x.dtype, shape, keepdims=1)
    if per_tensor:
        # A maximum over everything at once splits the kernel before it and stores an fp32 copy.
        if tokens:
            bounds = [make.constant(f"axis_{i}", np.array([i])) for i in (0, tokens, 1)]
            shape = [shape[0], tokens, 1]
            amax = make("no_padding", "Slice", [amax, *bounds], x.dtype, shape)
        axes, shape = make.constant("all_axes", np.array([0, 1, 2])), [1, 1, 1]
        amax = make("amax_of_all", "ReduceMax", [amax, axes], x.dtype, shape, keepdims=1)
    wide = make("amax_fp32", "Cast", [amax], _FLOAT, shape, to=int(_FLOAT))
    most = make.constant("e4m3_max", np.array(E4M3_MAX, np.float32))
    floor = make.constant("smallest_scale", np.array(SMALLEST_SCALE, np.float32))
    fraction = make("fraction", "Div", [wide, most], _FLOAT, shape)
    return make("scale", "Max", [fraction, floor], _FLOAT, shape)
