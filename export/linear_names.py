"""Names of the nodes that multiply by a weight, by which a linear is found again in an engine."""

from __future__ import annotations

import onnx_ir as ir

from fastwan.export.passes.graphs import constants
from fastwan.export.recipes import Recipe

_WEIGHT = ".weight"


def linear_node(linear: str) -> str:
    """Name of the node that computes the linear whose weight is ``<linear>.weight``."""
    return f"{linear}/MatMul"


def name_linears(graph: ir.Graph, recipe: Recipe) -> None:
    """Give each node that multiplies by a weight the name of `linear_node`.

    Args:
        graph: as traced; a weight may stand behind nodes that read constants alone.
        recipe: of the targeted linears; the others are MatMul nodes.
    """
    fixed = constants(graph)
    for node in graph:
        if node.op_type not in ("MatMul", recipe.operator):
            continue
        weight = _initializer(node.inputs[1], fixed)
        if weight is not None and str(weight.name).endswith(_WEIGHT):
            node.name = linear_node(str(weight.name).removesuffix(_WEIGHT))


def _initializer(value: ir.Value | None, fixed: set[ir.Value]) -> ir.Value | None:
    """The initializer that a constant operand is made of, following first inputs."""
    while value is not None and value in fixed:
        producer = value.producer()
        value = None if producer is None else producer.inputs[0]
    return value if value is not None and value.is_initializer() else None
