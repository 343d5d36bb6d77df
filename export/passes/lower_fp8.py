"""FP8 in standard operators that ONNX Runtime has on a CPU."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from fastwan.errors import BadInput
from fastwan.export.passes.graphs import chain, insert_before

_E4M3 = ir.DataType.FLOAT8E4M3FN


@dataclass(frozen=True)
class Linear:
    """The nodes of an FP8 linear as `expand_fp8` makes them.

    Attributes:
        matmul: the product of dequantised operands.
        dequantise: of its weight.
        source: the activation before it is scaled.
        scale: its scale, fp32.
        factor: node that multiplies both scales.
    """

    matmul: ir.Node
    dequantise: ir.Node
    source: ir.Value
    scale: ir.Value
    factor: ir.Node


def lower_fp8(model: ir.Model, *, quantize_activations: bool = True) -> tuple[ir.Model, bool]:
    """Replace FP8 quantise and dequantise nodes by casts of the same numerics.

    The weight stays in its data file as it is. A quantiser with another scale than 1, as of an
    attention's probabilities, becomes a division and a cast.

    Requires: nodes as `expand_fp8` and `fastwan.export.fp8.round_e4m3` make them.
    Ensures: no QuantizeLinear or DequantizeLinear of e4m3 is left.

    Args:
        model: changed in place.
        quantize_activations: false leaves the activations of linears unquantised and unscaled.

    Raises:
        BadInput: FP8 nodes that are not of that form.
    """
    if not quantize_activations:
        for linear in linears(model):
            _unquantise(linear)
    changed = False
    for node in list(model.graph):
        if is_quantiser(node) or is_dequantiser(node):
            _to_casts(model.graph, node)
            changed = True
    return model, changed


def is_quantiser(node: ir.Node) -> bool:
    """Whether a node rounds to e4m3."""
    return node.op_type == "QuantizeLinear" and node.outputs[0].dtype == _E4M3


def is_dequantiser(node: ir.Node) -> bool:
    """Whether a node gives e4m3 codes, not scaled in blocks, their values."""
    value = node.inputs[0] if node.inputs else None
    return (
        node.op_type == "DequantizeLinear"
        and value is not None
        and value.dtype == _E4M3
        and "block_size" not in node.attributes
        and not _is_scale(node)
    )


def _is_scale(node: ir.Node) -> bool:
    """Whether a node makes the block scales of an FP4 value."""
    return any(
        use.node.op_type == "DequantizeLinear" and use.idx == 1 for use in node.outputs[0].uses()
    )


def linears(model: ir.Model) -> list[Linear]:
    """The FP8 linears of a graph.

    Raises:
        BadInput: the nodes around one are not those of an exported linear.
    """
    found = []
    for node in model.graph:
        dequantise = _weight(node) if node.op_type == "MatMul" else None
        if dequantise is None:
            continue
        divided = chain(node.inputs[0], "DequantizeLinear", "QuantizeLinear", "Div")
        divisor = None if divided is None else chain(divided[-1].inputs[1], "Cast")
        factor = _factor(node)
        if divided is None or divisor is None or factor is None:
            raise BadInput(
                "an FP8 linear is not scaled as it is exported",
                where=str(node.name),
                fix="export the checkpoint again",
            )
        source, scale = divided[-1].inputs[0], divisor[0].inputs[0]
        assert source is not None
        assert scale is not None
        found.append(Linear(node, dequantise, source, scale, factor))
    return found


def _weight(matmul: ir.Node) -> ir.Node | None:
    """The node that dequantises a MatMul's FP8 weight."""
    nodes = chain(matmul.inputs[1], "Transpose", "DequantizeLinear")
    codes = None if nodes is None else nodes[1].inputs[0]
    if nodes is None or codes is None or codes.dtype != _E4M3 or not codes.is_initializer():
        return None
    return nodes[1]


def _factor(matmul: ir.Node) -> ir.Node | None:
    """The node that multiplies the two scales, which the product behind `matmul` reads."""
    node = matmul
    for op_type in ("Cast", "Mul"):
        readers = [use.node for use in node.outputs[0].uses()]
        if len(readers) != 1 or readers[0].op_type != op_type:
            return None
        node = readers[0]
    found = chain(node.inputs[1], "Mul")
    return None if found is None else found[0]


def _unquantise(linear: Linear) -> None:
    """Let a linear read its activation as it is, and multiply by the weight's scale alone."""
    linear.matmul.replace_input_with(0, linear.source)
    weight_scale = linear.factor.inputs[1]
    assert weight_scale is not None
    ir.convenience.replace_all_uses_with(linear.factor.outputs[0], weight_scale)


def _to_casts(graph: ir.Graph, node: ir.Node) -> None:
    value, scale = node.inputs[:2]
    assert value is not None
    assert scale is not None
    stored = scale.const_value
    if stored is None or stored.size != 1:
        raise BadInput(
            "an FP8 scale is no constant number",
            where=str(node.name),
            fix="FP8 nodes must be those of an exported linear or attention",
        )
    old = node.outputs[0]
    down = node.op_type == "QuantizeLinear"
    unit = float(stored.numpy().item()) == 1
    made: list[ir.Node] = []

    def add(op_type: str, inputs: list[ir.Value], dtype: ir.DataType | None, **rest: int) -> None:
        new = ir.node(op_type, inputs, rest or None, name=f"{node.name}/{op_type}")
        output = new.outputs[0]
        output.name, output.shape = f"{new.name}/out", old.shape
        output.type = None if dtype is None else ir.TensorType(dtype)
        made.append(new)

    if down and not unit:
        add("Div", [value, scale], value.dtype)
        value = made[-1].outputs[0]
    add("Cast", [value], old.dtype, to=int(old.dtype or 0))
    if not down and not unit:
        add("Mul", [made[-1].outputs[0], scale], old.dtype)
    result = made[-1].outputs[0]
    insert_before(node, made)
    ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    result.name = old.name
