"""Cut the keys and values of the cross-attentions into engines that share less scratch memory."""

from __future__ import annotations

import re

import onnx_ir as ir

from fastwan.export.passes.graphs import constants, nbytes, submodel, with_constants

MAX_RESULTS = 26_000_000
"""Most bytes of keys and values that one engine makes.

TensorRT-RTX computes linears of one input as a group, all results of which lie in scratch memory
before the first is normed: one engine of 30 blocks took 103 MB for 94 MB of results (measured).
"""

_NARROW = (ir.DataType.FLOAT4E2M1, ir.DataType.FLOAT8E4M3FN)
"""Formats of a recipe: what makes one outside the blocks quantises what they share."""

_BLOCK = re.compile(r"^text_kv\.(\d+)\.")


def cut_text(model: ir.Model, max_results: int = MAX_RESULTS) -> tuple[ir.Model, ...]:
    """Divide ``text_kv`` between blocks, so that no piece makes more than `max_results`.

    The first piece has the embedding of the text, too, and hands it on before its quantiser, which
    each piece repeats.

    Requires: nodes of block i are named ``text_kv.<i>.…``, those of a quantiser that blocks share
        ``<prefix>/…`` as no others are; blocks are equal.
    Ensures: the pieces in order compute what `model` does; values keep their names. A model that
    is small enough stays whole.

    Args:
        model: as `split_dit` makes it.
        max_results: bytes.
    """
    blocks = sorted({int(m[1]) for node in model.graph if (m := _BLOCK.match(str(node.name)))})
    outputs = [value for value in model.graph.outputs if _block(value.producer()) is not None]
    count = min(-(-sum(map(nbytes, outputs)) // max_results), len(blocks))
    if count <= 1:
        return (model,)
    fixed = constants(model.graph)
    quantised = _behind_quantisers(model.graph)
    models = []
    for index in range(count):
        first, last = (len(blocks) * each // count for each in (index, index + 1))
        chosen: set[int | None] = {*blocks[first:last], *([None] if index == 0 else [])}
        nodes = [
            node
            for node in model.graph
            if node.outputs[0] not in fixed and (node in quantised or _block(node) in chosen)
        ]
        inside = set(nodes) - quantised  # those stand in other pieces, too
        results = [
            value
            for node in nodes
            if node not in quantised
            for value in node.outputs
            if value.is_graph_output() or any(use.node not in inside for use in value.uses())
        ]
        name = f"{model.graph.name}_{index:02}"
        models.append(submodel(model, name, with_constants(nodes, model.graph), results))
    return tuple(models)


def _block(node: ir.Node | None) -> int | None:
    match = None if node is None else _BLOCK.match(str(node.name))
    return int(match[1]) if match else None


def _behind_quantisers(graph: ir.Graph) -> set[ir.Node]:
    """The quantisers outside the blocks, their scales, and what dequantises their results there."""
    outside = [node for node in graph if _block(node) is None]
    prefixes = {
        _prefix(node) for node in outside if any(value.dtype in _NARROW for value in node.outputs)
    }
    found: set[ir.Node] = set()
    for node in outside:
        made_by = {value.producer() for value in node.inputs if value is not None}
        if _prefix(node) in prefixes or made_by & found:
            found.add(node)
    return found


def _prefix(node: ir.Node) -> str:
    return str(node.name).rpartition("/")[0]
