"""What the passes share that lift a pattern in front of an activation's quantiser into one node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from fastwan.export.passes.graphs import (
    FASTWAN,
    constant,
    copy_node,
    copy_value,
    insert_before,
    producer,
    remove_unread,
)
from fastwan.export.recipes.nvfp4 import QUANTISE

VERSION = 1
"""Of the domain ``fastwan``."""

REPLACED = "fastwan.replaced"
"""Key in the ``meta`` of a lifted node: the graph of what it stands for, see `replaced`."""


def quantisers(model: ir.Model) -> list[ir.Node]:
    """The nodes that quantise an activation as the project's kernels do: with global scale 1."""
    return [
        node
        for node in model.graph
        if (node.domain, node.op_type) == QUANTISE and scalar(node.inputs[1]) == 1
    ]


def sole(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that makes `value`, if it is of that type and nothing else reads `value`."""
    node = producer(value, op_type)
    return node if node is not None and node.outputs[0] is value and read_once(value) else None


def read_once(value: ir.Value | None) -> bool:
    """Whether a value has one reader and is no output of the graph."""
    return value is not None and len(value.uses()) == 1 and not value.is_graph_output()


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
    reads: Sequence[ir.Value] | None = None,
) -> None:
    """Put a node of the domain ``fastwan`` where `outputs` are made; they keep their names.

    Nodes that nothing reads any more are removed. The new node's ``meta`` has what it stands for
    under `REPLACED`.

    Args:
        model: changed in place.
        anchor: a node that makes one of `outputs`; the new one stands in its place.
        reads: what the pattern reads in place of `inputs`, by default the same values: equal to
            them but for axes of size 1.
    """
    stands_for = replaced(model, inputs, inputs if reads is None else reads, outputs)
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
    node.meta[REPLACED] = stands_for
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
        remove_unread(model.graph, maker)
    model.graph.opset_imports[FASTWAN] = VERSION


def replaced(
    model: ir.Model,
    inputs: Sequence[ir.Value],
    reads: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
) -> ir.Model:
    """The nodes between `reads` and `outputs` as a graph of their own, which needs no weight.

    Its inputs and outputs are in the order of `inputs` and `outputs`. Those that are constants of
    `model` are inputs here, too; an input that only the node in their place needs has no reader.

    Args:
        model: left unchanged.
        inputs: what the graph is given.
        reads: what its nodes read of it, equal to `inputs` but for axes of size 1.
    """
    graph, between = model.graph, _between(reads, outputs)
    made = ir.Graph([], [], nodes=[], name="replaced", opset_imports=dict(graph.opset_imports))
    made.inputs.extend(map(_without_content, inputs))
    copies: dict[ir.Value, ir.Value] = {}
    for index, (given, read) in enumerate(zip(made.inputs, reads, strict=True)):
        copies[read] = given
        assert read.shape is not None
        if given.shape != read.shape:
            shape = ir.tensor(np.array(read.shape.numpy(), np.int64))
            sizes = constant(made, f"replaced/{index}/shape", shape)
            node = ir.node("Reshape", [given, sizes], name=f"replaced/{index}/Reshape")
            copies[read] = node.outputs[0]
            copies[read].name = f"replaced/{index}/reshaped"
            copies[read].type, copies[read].shape = read.type, read.shape
            made.append(node)
    for node in (node for node in graph if node in between):
        for value in node.inputs:
            if value is not None and value not in copies:
                copies[value] = copy_value(value)
                made.initializers.add(copies[value])
        made.append(copy_node(node, copies, node.name))
    made.outputs.extend(copies[value] for value in outputs)
    return ir.Model(made, ir_version=model.ir_version)


def _between(reads: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> set[ir.Node]:
    found: set[ir.Node] = set()
    waiting = [value for value in outputs if value not in reads]
    while waiting:
        node = waiting.pop().producer()
        assert node is not None, "the pattern reads what is not given"
        if node not in found:
            found.add(node)
            waiting += [
                value
                for value in node.inputs
                if value is not None and not value.is_initializer() and value not in reads
            ]
    return found


def _without_content(value: ir.Value) -> ir.Value:
    return ir.Value(name=value.name, type=value.type, shape=value.shape)
