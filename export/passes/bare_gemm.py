"""GEMMs without weights: what one engine computes for all blocks, given codes and scales.

An FP4 GEMM stays one where codes and block scales of its weight are inputs, if the weight's global
scale is a constant. So that scale leaves the engine for the node behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from fastwan.export.passes.graphs import FASTWAN, chain, constant, insert_before, producer
from fastwan.export.passes.lifting import REPLACED, read_once, scalar
from fastwan.export.recipes.nvfp4 import BLOCK

SCALED = "scaled"
"""Attribute of a lifted node whose last input is a factor of its first one."""
SCALABLE = ("GeluQuantize", "ResidualNormQuantize", "ResidualNorm", "CrossAttention")
"""Lifted nodes that begin with the product of a GEMM."""
_ONE = "bare_gemm/one"
_WEIGHT = ("Transpose", "Cast", "DequantizeLinear")
_ACTIVATION = ("Cast", "DequantizeLinear")


@dataclass(frozen=True)
class BareGemm:
    """A graph that computes ``y = x w^T`` of operands that are both given.

    Attributes:
        name: of the graph; the same for every GEMM of these shapes.
        model: inputs ``codes`` [L, K] and ``scales`` [L, K/16] of x, ``weight`` [N, K] and
            ``weight_scale`` [N, K/16]; output ``y`` [L, N]. Two axes each: with a batch axis the
            builder transposes weight and scales at every run.
        bindings: what `model` calls each tensor of the segment.
        constants: initializers of the segment that are inputs of `model`.
        nodes: name in the segment of each node of `model`.
    """

    name: str
    model: ir.Model
    bindings: Mapping[str, str]
    constants: tuple[ir.Value, ...]
    nodes: Mapping[str, str]


def scale_behind(model: ir.Model) -> bool:
    """Move global scales of FP4 weights into the lifted nodes that read the products.

    Requires: linears as `expand_nvfp4` leaves them.
    Ensures: where a node of `SCALABLE` is all that reads the product of a GEMM, it has the weight's
        global scale as its last input, and the GEMM's is 1; ``bf16(bf16(sum) * scale)`` takes the
        place of ``bf16(sum * scale)``. Whatever the scale is: the graph depends on no weight.

    Args:
        model: changed in place.

    Returns:
        Whether there was any.
    """
    changed = False
    for node in model.graph:
        if node.domain != FASTWAN or node.op_type not in SCALABLE:
            continue
        y = node.inputs[0]
        matmul = producer(y, "MatMul")
        found = None if matmul is None else chain(matmul.inputs[1], *_WEIGHT)
        dequantize = None if found is None else producer(found[-1].inputs[1], "DequantizeLinear")
        factor = None if dequantize is None else dequantize.inputs[1]
        if dequantize is None or factor is None or not factor.is_initializer() or not read_once(y):
            continue
        assert y is not None
        _append_input(node, factor)
        _scale_replaced(node, y, factor)
        dequantize.replace_input_with(1, _one(model.graph))
        changed = True
    return changed


def _one(graph: ir.Graph) -> ir.Value:
    return constant(graph, _ONE, ir.tensor(np.float32(1)))


def _append_input(node: ir.Node, value: ir.Value) -> None:
    node.resize_inputs(len(node.inputs) + 1)
    node.replace_input_with(len(node.inputs) - 1, value)
    node.attributes.add(ir.AttrInt64(SCALED, 1))


def _scale_replaced(node: ir.Node, y: ir.Value, factor: ir.Value) -> None:
    """Let what the node stands for begin with the product, too."""
    model: ir.Model = node.meta[REPLACED]
    graph = model.graph
    given = graph.inputs[0]
    readers = list(given.uses())
    scale = ir.Value(name=factor.name, type=factor.type, shape=factor.shape)
    graph.inputs.append(scale)
    wide = ir.node("Cast", [given], {"to": int(ir.DataType.FLOAT)}, name="replaced/wide")
    product = ir.node("Mul", [wide.outputs[0], scale], name="replaced/scaled")
    rounded = ir.node("Cast", [product.outputs[0]], {"to": int(y.dtype or 0)}, name="replaced/y")
    for made, dtype in (
        (wide, ir.DataType.FLOAT),
        (product, ir.DataType.FLOAT),
        (rounded, y.dtype),
    ):
        value = made.outputs[0]
        value.name = f"{made.name}/out"
        value.type = None if dtype is None else ir.TensorType(dtype)
        value.shape = given.shape
    for use in readers:
        use.node.replace_input_with(use.idx, rounded.outputs[0])
    insert_before(graph[0], [wide, product, rounded])


@dataclass(frozen=True)
class _Operand:
    """An operand of a GEMM: what it is dequantised from, and the nodes that do, the last first."""

    codes: ir.Value
    scales: ir.Value
    nodes: tuple[ir.Node, ...]

    @property
    def values(self) -> tuple[ir.Value, ir.Value]:
        return self.codes, self.scales


def bare_gemm(segment: ir.Model) -> BareGemm | None:
    """A segment that is one FP4 GEMM and nothing beside it as a graph without weights.

    Args:
        segment: left unchanged.

    Returns:
        None where it is anything else, or where a global scale is not 1.
    """
    graph = segment.graph
    matmuls = [node for node in graph if node.op_type == "MatMul"]
    if len(matmuls) != 1:
        return None
    (matmul,) = matmuls
    x, w = _operand(matmul.inputs[0], _ACTIVATION), _operand(matmul.inputs[1], _WEIGHT)
    if x is None or w is None or list(graph.outputs) != list(matmul.outputs):
        return None
    given = all(value.is_graph_input() for value in x.values)
    stored = all(value.is_initializer() for value in w.values)
    nodes = (matmul, *x.nodes, *w.nodes)
    if not given or not stored or len(list(graph)) != len(nodes):
        return None
    return _without_weight(segment, nodes, x, w)


def _operand(value: ir.Value | None, op_types: tuple[str, ...]) -> _Operand | None:
    """FP4 codes with e4m3 block scales and the global scale 1; None for anything else."""
    found = chain(value, *op_types)
    scale = None if found is None else producer(found[-1].inputs[1], "DequantizeLinear")
    if found is None or scale is None or scalar(scale.inputs[1]) != 1:
        return None
    codes, scales = found[-1].inputs[0], scale.inputs[0]
    if codes is None or scales is None:
        return None
    if (codes.dtype, scales.dtype) != (ir.DataType.FLOAT4E2M1, ir.DataType.FLOAT8E4M3FN):
        return None
    return _Operand(codes, scales, (*found, scale))


def _without_weight(
    segment: ir.Model, nodes: tuple[ir.Node, ...], x: _Operand, w: _Operand
) -> BareGemm | None:
    values = (*x.values, *w.values)
    shapes = [value.shape.numpy() for value in values if value.shape is not None]
    *lead, rows, depth = shapes[0]
    columns = shapes[2][0]
    if any(size != 1 for size in lead) or shapes[2] != (columns, depth):
        return None
    names = ("codes", "scales", "weight", "weight_scale")
    inputs = [
        ir.Value(name=name, type=value.type, shape=ir.Shape(shape[-2:]))
        for name, value, shape in zip(names, values, shapes, strict=True)
    ]
    name = f"gemm_{rows}x{columns}x{depth}"
    opsets = {"": segment.graph.opset_imports[""]}
    graph = ir.Graph(inputs, [], nodes=[], name=name, opset_imports=opsets)
    y = nodes[0].outputs[0]
    codes, scales, weight, weight_scale = inputs
    x_nodes = _dequantised(graph, "x", codes, scales, y.dtype)
    w_nodes = _dequantised(graph, "weight", weight, weight_scale, y.dtype)
    turned = ir.node(
        "Transpose", [w_nodes[0].outputs[0]], {"perm": [1, 0]}, name="weight/transposed"
    )
    matmul = ir.node("MatMul", [x_nodes[0].outputs[0], turned.outputs[0]], name="gemm")
    made = (matmul, *x_nodes, turned, *w_nodes)
    for node in reversed(made):
        node.outputs[0].name = f"{node.name}/out"
        graph.append(node)
    result = matmul.outputs[0]
    result.name, result.type, result.shape = "y", y.type, ir.Shape([rows, columns])
    graph.outputs.append(result)
    bound = zip((*values, y), (*names, "y"), strict=True)
    return BareGemm(
        name=name,
        model=ir.Model(graph, ir_version=segment.ir_version),
        bindings={str(value.name): own for value, own in bound},
        constants=w.values,
        nodes={str(new.name): str(old.name) for new, old in zip(made, nodes, strict=True)},
    )


def _dequantised(
    graph: ir.Graph, prefix: str, codes: ir.Value, scales: ir.Value, dtype: ir.DataType | None
) -> tuple[ir.Node, ...]:
    """The nodes that dequantise an operand, the last first, as `_Operand` has them."""
    scale = ir.node("DequantizeLinear", [scales, _one(graph)], name=f"{prefix}/scale")
    values = ir.node(
        "DequantizeLinear", [codes, scale.outputs[0]], {"axis": -1, "block_size": BLOCK},
        name=f"{prefix}/values",
    )  # fmt: skip
    wide = ir.node("Cast", [values.outputs[0]], {"to": int(dtype or 0)}, name=f"{prefix}/wide")
    return wide, values, scale
