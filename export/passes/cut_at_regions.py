"""Cut a graph at the nodes of the domain ``fastwan``, which TensorRT-RTX cannot hold."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from fastwan.export.passes.graphs import FASTWAN, constants, nbytes, submodel

_CHEAP = {"Add", "Sub", "Mul", "Div", "Cast", "Slice", "Unsqueeze", "Squeeze", "Reshape"}
_MOVES = {"Reshape", "Transpose"}
_SMALL = 8
"""A value this many times smaller than any node's result is computed again where it is read."""
_WIDTH = 2
"""Bytes of an element that sizes are compared by: those of the bf16 value that a node's FP4 codes
stand for."""


@dataclass(frozen=True)
class Region:
    """Neighbouring ``fastwan`` nodes that the runtime launches itself between two engines."""

    name: str
    model: ir.Model


@dataclass(frozen=True)
class Cut:
    """Segments and the regions between them: segment 0, region 0, segment 1, ..."""

    segments: tuple[ir.Model, ...]
    regions: tuple[Region, ...]


def cut_at_regions(model: ir.Model) -> Cut:
    """Divide a graph into segments with the regions between them.

    A value that several segments read is handed over by its name. Small values made by cheap
    operators (a block's modulation) are computed again where they are read, so that they fuse
    there instead of becoming kernels and bindings of an earlier segment.

    Requires: what depends on the prompt or the timestep alone was hoisted (`split_dit`).
    Ensures: no segment holds a node of the domain; every region reads and writes whole values.

    Args:
        model: left unchanged.
    """
    stage: dict[ir.Value, int] = {}
    segments: dict[int, list[ir.Node]] = {0: []}
    regions: dict[int, list[ir.Node]] = {}
    region_of: dict[ir.Value, int] = {}
    for node in model.graph:
        reads = [value for value in node.inputs if value is not None and not value.is_initializer()]
        level = 0
        for value in reads:
            after = region_of.get(value)
            if after is None:
                level = max(level, stage.get(value, 0))
            else:
                # A region's neighbour of the domain joins it; any other node comes after it.
                level = max(level, after if node.domain == FASTWAN else after + 1)
        for value in node.outputs:
            stage[value] = level
            if node.domain == FASTWAN:
                region_of[value] = level
        (regions if node.domain == FASTWAN else segments).setdefault(level, []).append(node)
    wanted: dict[int, set[ir.Value]] = {level: set() for level in range(max(segments) + 1)}
    graph_outputs = set(model.graph.outputs)
    plans: dict[int, list[ir.Node]] = {}
    position = {node: index for index, node in enumerate(model.graph)}
    fixed = constants(model.graph)
    small = min((_result_bytes(node) for nodes in regions.values() for node in nodes), default=0)
    small //= _SMALL
    for level in sorted(wanted, reverse=True):
        results = {
            value
            for node in segments.get(level, ())
            for value in node.outputs
            if value in graph_outputs or value in wanted[level] or _read_by_region(value)
        }
        nodes = _closure(results, level, stage, region_of, small, wanted, fixed)
        plans[level] = sorted(nodes, key=position.__getitem__)
        wanted[level] = results
    return Cut(
        segments=tuple(
            submodel(
                model,
                f"segment_{level:02d}",
                plans[level],
                sorted(wanted[level], key=lambda v: position[_producer(v)]),
            )
            for level in sorted(wanted)
        ),
        regions=tuple(
            Region(f"region_{level:02d}", _region_model(model, f"region_{level:02d}", nodes))
            for level, nodes in sorted(regions.items())
        ),
    )


def _result_bytes(node: ir.Node) -> int:
    """Bytes of the largest output of a node in bf16; block scales do not count."""
    return max(_elements(value) for value in node.outputs) * _WIDTH


def _elements(value: ir.Value) -> int:
    if value.dtype is None or value.shape is None or not value.shape.is_static():
        return 0
    return math.prod(value.shape.numpy())


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node


def _read_by_region(value: ir.Value) -> bool:
    return any(use.node.domain == FASTWAN for use in value.uses())


def _closure(
    results: set[ir.Value],
    level: int,
    stage: dict[ir.Value, int],
    region_of: dict[ir.Value, int],
    small: int,
    wanted: dict[int, set[ir.Value]],
    fixed: set[ir.Value],
) -> set[ir.Node]:
    """Nodes that segment `level` needs; notes in `wanted` what earlier segments must hand over."""
    nodes: set[ir.Node] = set()
    queue = list(results)
    while queue:
        value = queue.pop()
        node = value.producer()
        if node is None or value in region_of:
            continue
        if stage[value] < level and value not in fixed and not _recompute(value, small):
            wanted[stage[value]].add(value)
            continue
        if node not in nodes:
            nodes.add(node)
            queue.extend(v for v in node.inputs if v is not None and not v.is_initializer())
    return nodes


def _recompute(value: ir.Value, small: int) -> bool:
    """Whether a later segment makes `value` itself from what it is made of."""
    node = _producer(value)
    if _moved_input(value):
        return True
    if node.op_type not in _CHEAP:
        return False
    if node.op_type == "Cast" and node.inputs[0] is not None:
        # Hand over the bf16 value, not its fp32 copy of twice the size.
        return nbytes(node.inputs[0]) < nbytes(value) or nbytes(value) <= small
    # A slice of something large is handed over rather than what it is cut from.
    reads = [v for v in node.inputs if v is not None and not v.is_initializer()]
    return all(0 < nbytes(v) <= small for v in (value, *reads))


def _moved_input(value: ir.Value) -> bool:
    """Whether `value` is a graph input in another shape, which any segment can read itself."""
    if value.is_graph_input():
        return True
    node = value.producer()
    if node is None or node.op_type not in _MOVES or node.inputs[0] is None:
        return False
    return _moved_input(node.inputs[0])


def _region_model(model: ir.Model, name: str, nodes: list[ir.Node]) -> ir.Model:
    inside = set(nodes)
    outputs = [
        value
        for node in nodes
        for value in node.outputs
        if value in model.graph.outputs or any(use.node not in inside for use in value.uses())
    ]
    return submodel(model, name, nodes, outputs)
