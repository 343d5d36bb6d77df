"""Compute in fp32 what a CPU has no 16-bit kernels for, rounding where the graph rounds."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from fastwan.export.passes.graphs import insert_before

_LOW = {ir.DataType.BFLOAT16, ir.DataType.FLOAT16}
_MOVES = {
    "Concat", "Expand", "Gather", "Identity", "Pad", "Reshape", "Slice", "Split", "Squeeze",
    "Transpose", "Unsqueeze",
}  # fmt: skip


def lower_precision(model: ir.Model, *, rounding: bool = True) -> tuple[ir.Model, bool]:
    """Carry 16-bit values in fp32 tensors; graph inputs and outputs become fp32 too.

    Requires: no 16-bit values inside subgraphs.
    Ensures: only Cast nodes see a 16-bit type. With `rounding`, every value that had a 16-bit
    type holds a number of that type; without, the graph computes in fp32 throughout.

    Args:
        model: changed in place.
        rounding: round where the graph does, or nowhere.
    """
    graph = model.graph
    low = {value: value.dtype for value in _values(graph) if _is_low(graph, value, rounding)}
    if not low:
        return model, False
    for node in list(graph):
        if node.op_type == "Cast" and not node.domain:
            _lower_cast(node, low, rounding)
            continue
        for value in node.outputs:
            dtype = low.get(value)
            if dtype is None:
                continue
            value.type = ir.TensorType(ir.DataType.FLOAT)
            if rounding and node.op_type not in _MOVES:
                _round(graph, node, value, dtype)
    for value in graph.inputs:
        dtype = low.get(value)
        if dtype is not None:
            value.type = ir.TensorType(ir.DataType.FLOAT)
            if rounding:
                _round_input(graph, value, dtype)
    for value in list(graph.initializers.values()):
        if value in low:
            _widen_initializer(graph, value)
    return model, True


def _is_low(graph: ir.Graph, value: ir.Value, rounding: bool) -> bool:
    """Whether a value has a 16-bit type and is not just on its way between two Casts already."""
    if value.dtype not in _LOW:
        return False
    widened = all(
        use.node.op_type == "Cast" and use.node.outputs[0].dtype == ir.DataType.FLOAT
        for use in value.uses()
    )
    if not widened or value in graph.outputs:
        return True
    node = value.producer()
    if node is None:
        return not value.is_initializer()
    source = node.inputs[0] if node.op_type == "Cast" else None
    return not (rounding and source is not None and source.dtype == ir.DataType.FLOAT)


def _values(graph: ir.Graph) -> list[ir.Value]:
    values = [*graph.inputs, *graph.initializers.values()]
    for node in graph:
        values.extend(node.outputs)
    return values


def _casts(source: ir.Value, dtype: ir.DataType, name: str) -> tuple[ir.Node, ir.Node]:
    """Nodes that round `source` to `dtype` and widen it again."""
    down = ir.node("Cast", [source], {"to": int(dtype)}, name=f"{name}/round")
    up = ir.node("Cast", [down.outputs[0]], {"to": 1}, name=f"{name}/widen")
    for node, kind in ((down, dtype), (up, ir.DataType.FLOAT)):
        node.outputs[0].name = f"{node.name}/out"
        node.outputs[0].type = ir.TensorType(kind)
        node.outputs[0].shape = source.shape
    return down, up


def _lower_cast(node: ir.Node, low: Mapping[ir.Value, ir.DataType | None], rounding: bool) -> None:
    """A Cast to a 16-bit type becomes a rounding; one from it to fp32 is left as it is."""
    graph, output = node.graph, node.outputs[0]
    assert graph is not None
    target = low.get(output)
    if target is None:
        return
    output.type = ir.TensorType(ir.DataType.FLOAT)
    node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
    if rounding:
        _round(graph, node, output, target)


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value, dtype: ir.DataType) -> None:
    """Round the output `value` of `node`; its name goes to the rounded value."""
    name = str(value.name)
    value.name = f"{name}/exact"
    down, up = _casts(value, dtype, name)
    result = up.outputs[0]
    ir.convenience.replace_all_uses_with(value, result, replace_graph_outputs=True)
    down.replace_input_with(0, value)
    result.name = name
    graph.insert_after(node, [down, up])


def _round_input(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> None:
    down, up = _casts(value, dtype, str(value.name))
    ir.convenience.replace_all_uses_with(value, up.outputs[0])
    down.replace_input_with(0, value)
    insert_before(next(iter(graph)), [down, up])


def _widen_initializer(graph: ir.Graph, value: ir.Value) -> None:
    assert value.is_initializer()
    if not value.uses():
        return
    widen = ir.node("Cast", [value], {"to": 1}, name=f"{value.name}/widen")
    widen.outputs[0].name = f"{value.name}/fp32"
    widen.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    widen.outputs[0].shape = value.shape
    ir.convenience.replace_all_uses_with(value, widen.outputs[0])
    widen.replace_input_with(0, value)
    insert_before(next(iter(graph)), [widen])
