"""Hoist what depends on the prompt alone into a model of its own."""

from __future__ import annotations

import onnx_ir as ir

from fastwan.errors import BadInput
from fastwan.export.passes.graphs import constants, submodel, with_constants

_MOVES = ("Reshape", "Transpose")
_BLOCKS = "blocks."


def split_text(
    model: ir.Model, text_input: str = "encoder_hidden_states"
) -> tuple[ir.Model, ir.Model]:
    """Divide a transformer into (text_kv, dit): the prompt's part is run once, not every step.

    It must run before a cut: blocks share the quantiser of the text context, and a cut between
    a quantiser and its dequantiser loses FP4 silently.

    A block's own Reshape and Transpose stay with it: behind a norm they would be a second kernel in
    the prompt's part, and the attention of the block copies its keys anyway.

    Requires: a graph input named `text_input`.
    Ensures: `text_kv` reads only that input; `dit` does not read it; values keep their names.

    Raises:
        BadInput: there is no such input.
    """
    source = next((value for value in model.graph.inputs if value.name == text_input), None)
    if source is None:
        raise BadInput("graph has no text input", where=text_input)
    from_text: set[ir.Value] = {source}
    fixed = constants(model.graph)
    text_nodes, other_nodes = [], []
    for node in model.graph:
        reads = [
            value
            for value in node.inputs
            if value is not None and not value.is_initializer() and value not in fixed
        ]
        if not reads:
            continue
        stays = node.op_type in _MOVES and str(node.name).startswith(_BLOCKS)
        if all(value in from_text for value in reads) and not stays:
            from_text.update(node.outputs)
            text_nodes.append(node)
        else:
            other_nodes.append(node)
    crossing: dict[ir.Value, None] = {}
    for node in other_nodes:
        for value in node.inputs:
            if value is not None and value in from_text:
                crossing[value] = None
    text_nodes = with_constants(text_nodes, model.graph)
    other_nodes = with_constants(other_nodes, model.graph)
    text = submodel(model, "text_kv", text_nodes, list(crossing))
    return text, submodel(model, "dit", other_nodes, list(model.graph.outputs))
