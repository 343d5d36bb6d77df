"""Hoist what depends on one graph input alone into a model of its own."""

from __future__ import annotations

import onnx_ir as ir

from fastwan.errors import BadInput
from fastwan.export.passes.graphs import constants, submodel, with_constants

AT_HOME = ("blocks.", "head.")
"""Begin the names of nodes that are hoisted by no input."""


def hoist(model: ir.Model, input_name: str, name: str) -> tuple[ir.Model, ir.Model]:
    """Divide a transformer into (what follows from one input alone, the rest).

    The first runs as often as that input changes: a prompt's keys and values once a prompt, the
    tables of a timestep once a bundle. It must run before a cut: blocks share the quantiser of the
    text context, and a cut between a quantiser and its dequantiser loses FP4 silently.

    Nodes of a block or of the head stay there whatever they read. They are small, and cost nothing
    where they are: the add of ``scale_shift_table`` to a timestep's table is part of the kernel
    that norms and modulates, and hoisted it would be 30 tables in place of one. A block's Reshape
    and Transpose of its keys would be a second kernel behind their norm, and the attention copies
    the keys anyway.

    Requires: a graph input `input_name`; nodes of blocks and head are named ``blocks.…``,
    ``head.…``.
    Ensures: the first model reads only that input, the second does not read it; both in turn
    compute what `model` does; values keep their names.

    Args:
        model: left unchanged.
        name: name of the first graph; the second has that of `model`.

    Raises:
        BadInput: there is no such input, or a node of the rest reads it itself.
    """
    source = next((value for value in model.graph.inputs if value.name == input_name), None)
    if source is None:
        raise BadInput("graph lacks an input", where=input_name)
    from_source: set[ir.Value] = {source}
    fixed = constants(model.graph)
    hoisted, rest = [], []
    for node in model.graph:
        reads = [
            value
            for value in node.inputs
            if value is not None and not value.is_initializer() and value not in fixed
        ]
        if not reads:
            continue
        stays = str(node.name).startswith(AT_HOME)
        if all(value in from_source for value in reads) and not stays:
            from_source.update(node.outputs)
            hoisted.append(node)
        else:
            rest.append(node)
    crossing: dict[ir.Value, None] = {}
    for node in rest:
        for value in node.inputs:
            if value is not None and value in from_source:
                crossing[value] = None
    if source in crossing:
        raise BadInput("input is read beside what does not follow from it", where=input_name)
    first = submodel(model, name, with_constants(hoisted, model.graph), list(crossing))
    second = with_constants(rest, model.graph)
    return first, submodel(model, str(model.graph.name), second, list(model.graph.outputs))
