"""What the passes share that lift a pattern in front of an activation's quantiser into one node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from fastwan.export.passes.graphs import FASTWAN, insert_before
from fastwan.export.recipes.nvfp4 import QUANTISE

VERSION = 1
"""Of the domain ``fastwan``."""


def quantisers(model: ir.Model) -> list[ir.Node]:
    """The nodes that quantise an activation as the project's kernels do: with global scale 1."""
    return [
        node
        for node in model.graph
        if (node.domain, node.op_type) == QUANTISE and scalar(node.inputs[1]) == 1
    ]


def producer(value: ir.Value | None, op_type: str, domain: str = "") -> ir.Node | None:
    """The node that makes `value`, if it is of that type."""
    node = None if value is None else value.producer()
    return node if node is not None and (node.domain, node.op_type) == (domain, op_type) else None


def sole(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that makes `value`, if it is of that type and nothing else reads `value`."""
    node = producer(value, op_type)
    return node if node is not None and node.outputs[0] is value and read_once(value) else None


def read_once(value: ir.Value | None) -> bool:
    """Whether a value has one reader and is no output of the graph."""
    return value is not None and len(value.uses()) == 1 and not value.is_graph_output()


def chain(value: ir.Value | None, *op_types: str) -> list[ir.Node] | None:
    """The nodes that lead to `value`, the last first, each the maker of the first input of the one
    before it; None if they are not of exactly these types."""
    nodes: list[ir.Node] = []
    for op_type in op_types:
        node = producer(value, op_type)
        if node is None:
            return None
        nodes.append(node)
        value = node.inputs[0]
    return nodes


def scalar(value: ir.Value | None) -> float | None:
    """The number that an initializer of one element holds; None for anything else."""
    stored = None if value is None else value.const_value
    return float(stored.numpy().item()) if stored is not None and stored.size == 1 else None


def with_vector(node: ir.Node | None) -> tuple[ir.Value, ir.Value] | None:
    """(moving value, vector) of an operator of a value and an initializer of one axis."""
    if node is None:
        return None
    for moving, vector in (node.inputs[:2], node.inputs[1::-1]):
        if moving is not None and vector is not None and _is_vector(vector):
            return moving, vector
    return None


def _is_vector(value: ir.Value) -> bool:
    return value.is_initializer() and value.shape is not None and len(value.shape) == 1


def lift(
    model: ir.Model,
    anchor: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    attributes: Mapping[str, int | float],
) -> None:
    """Put a node of the domain ``fastwan`` where `outputs` are made; they keep their names.

    Nodes that nothing reads any more are removed.

    Args:
        model: changed in place.
        anchor: a node that makes one of `outputs`; the new one stands in its place.
    """
    node = ir.Node(
        FASTWAN,
        op_type,
        list(inputs),
        [
            ir.AttrInt64(name, value) if isinstance(value, int) else ir.AttrFloat32(name, value)
            for name, value in attributes.items()
        ],
        num_outputs=len(outputs),
        name=f"{anchor.name}/{op_type}",
    )
    insert_before(anchor, [node])
    unread = []
    for old, new in zip(outputs, node.outputs, strict=True):
        maker = old.producer()
        assert maker is not None
        new.type, new.shape = old.type, old.shape
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        new.name, old.name = old.name, f"{old.name}/unread"
        unread.append(maker)
    for maker in unread:
        _remove_unread(model.graph, maker)
    model.graph.opset_imports[FASTWAN] = VERSION


def _remove_unread(graph: ir.Graph, node: ir.Node) -> None:
    """Remove a node if nothing reads what it makes, and those before it that are then unread."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        unread = not any(value.uses() or value.is_graph_output() for value in node.outputs)
        if node.graph is not graph or not unread:
            continue
        before = [value.producer() for value in node.inputs if value is not None]
        graph.remove(node, safe=True)
        waiting += [each for each in dict.fromkeys(before) if each is not None]
