"""Cut a network of equal blocks into pieces of a few blocks each."""

from __future__ import annotations

import re
from itertools import pairwise

import onnx_ir as ir

from fastwan.errors import BadInput
from fastwan.export.passes.graphs import constants, nbytes, submodel, with_constants

_BLOCK = re.compile(r"^(?:encoder\.block|blocks)\.(\d+)\.")
_LAST_PRODUCT = ".ffn.fc2/MatMul"
_LARGE = 1 << 20
_SHARED = ".shared"


def cut_every(model: ir.Model, blocks: int) -> tuple[ir.Model, ...]:
    """Divide a transformer into models of some blocks each, with what they hand on as outputs.

    What comes before the first block belongs to the first model, what follows the last block to
    the last. As one engine, 30 blocks take 4 GB to build and plan their memory worse. The cut is
    behind the last product of a block where that is quantised: the builder makes one kernel of what
    follows it and the next norm. What follows another product is a part of the GEMM.

    Requires: nodes of block i are named ``blocks.<i>.…``, its last product `_LAST_PRODUCT`.
    Ensures: the models in order compute what `model` does; values keep their names. A constant of
    more than 1 MiB is held by the first model alone, which has it as an output ``<name>.shared``.
    """
    fixed = constants(model.graph)
    groups: dict[int, list[ir.Node]] = {}
    piece = 0
    names = [str(node.name) for node in model.graph]
    last = max((int(match[1]) for match in map(_BLOCK.match, names) if match), default=0)
    for node, name in zip(model.graph, names, strict=True):
        match = _BLOCK.match(name)
        if match and int(match[1]) // blocks >= piece:
            piece = int(match[1]) // blocks
        groups.setdefault(piece, []).append(node)
        if match and name.endswith(_LAST_PRODUCT) and _quantised(node):
            piece = min(int(match[1]) + 1, last) // blocks
    if len(groups) == 1:
        return (model,)
    models = []
    for index, nodes in sorted(groups.items()):
        inside = set(nodes)
        results = [
            value
            for node in nodes
            for value in node.outputs
            if value not in fixed
            and (
                value in model.graph.outputs or any(use.node not in inside for use in value.uses())
            )
        ]
        wanted = with_constants([n for n in nodes if n.outputs[0] not in fixed], model.graph)
        models.append(submodel(model, f"{model.graph.name}_{index:02}", wanted, results))
    _share_tables(models)
    return tuple(models)


def _quantised(product: ir.Node) -> bool:
    """Whether the weight of a MatMul is dequantised in the graph."""
    weight = product.inputs[1]
    while weight is not None and (node := weight.producer()) is not None:
        if node.op_type == "DequantizeLinear":
            return True
        weight = node.inputs[0]
    return False


def _share_tables(models: list[ir.Model]) -> None:
    """Let the first model hand on the large constants that others hold too, as RoPE's tables."""
    first, *others = (model.graph for model in models)
    for name, value in list(first.initializers.items()):
        holders = [graph for graph in others if name in graph.initializers]
        if nbytes(value) < _LARGE or not holders:
            continue
        copy = ir.node("Identity", [value], name=f"{name}{_SHARED}")
        output = copy.outputs[0]
        output.name, output.type, output.shape = f"{name}{_SHARED}", value.type, value.shape
        first.append(copy)
        first.outputs.append(output)
        for graph in holders:
            held = graph.initializers.pop(name)
            given = ir.Value(name=output.name, type=value.type, shape=value.shape)
            ir.convenience.replace_all_uses_with(held, given)
            graph.inputs.append(given)


def cut_at_blocks(model: ir.Model, max_bytes: int) -> tuple[ir.Model, ...]:
    """Divide the text encoder between blocks, so that no piece has more weights than `max_bytes`.

    A builder holds the weights of an engine about twice, so one engine of UMT5-XXL would need
    18 GB to be built; pieces are built one after the other. Each has one input and one output, the
    hidden state; what all blocks share is a function of its length and is computed in each piece.

    Requires: one graph input and output; nodes of block i are named ``encoder.block.<i>.…``, and
    the nodes before the first block read nothing of the input but its shape.
    Ensures: the pieces in order compute what `model` does; values keep their names.

    Raises:
        BadInput: more than one value leads from a block to the next.
    """
    blocks = _blocks(model)
    pieces = _pieces([sum(map(_weights, nodes)) for nodes in blocks], max_bytes)
    if len(pieces) == 1:
        return (model,)
    inside = [node for nodes in blocks for node in nodes]
    before = []
    for node in model.graph:
        if node in inside:
            break
        before.append(node)
    after = [node for node in model.graph if node not in {*inside, *before}]
    models = []
    for index, (first, last) in enumerate(pairwise((*pieces, len(blocks)))):
        nodes = [node for block in blocks[first:last] for node in block]
        final = last == len(blocks)
        if final:
            nodes += after
        results = list(model.graph.outputs) if final else _crossing(nodes, {*nodes, *before})
        if len(results) != 1:
            raise BadInput(f"{len(results)} values leave a piece", where=str(model.graph.name))
        wanted = with_constants([*before, *nodes], model.graph)
        piece = submodel(model, f"{model.graph.name}_{index:02}", wanted, results)
        if index:
            _join_inputs(piece, str(model.graph.inputs[0].name))
        models.append(piece)
    return tuple(models)


def _blocks(model: ir.Model) -> list[list[ir.Node]]:
    blocks: dict[int, list[ir.Node]] = {}
    for node in model.graph:
        match = _BLOCK.match(str(node.name))
        if match:
            blocks.setdefault(int(match[1]), []).append(node)
    return [blocks[index] for index in sorted(blocks)]


def _weights(node: ir.Node) -> int:
    return sum(nbytes(v) for v in node.inputs if v is not None and v.is_initializer())


def _pieces(sizes: list[int], max_bytes: int) -> list[int]:
    """First block of each piece; pieces as even as whole blocks allow."""
    count = max(1, -(-sum(sizes) // max_bytes))
    count = min(count, len(sizes)) or 1
    return [len(sizes) * index // count for index in range(count)]


def _crossing(nodes: list[ir.Node], inside: set[ir.Node]) -> list[ir.Value]:
    return [
        value
        for node in nodes
        for value in node.outputs
        if any(use.node not in inside for use in value.uses())
    ]


def _join_inputs(piece: ir.Model, original: str) -> None:
    """Let a later piece take the length from the hidden state it reads."""
    inputs = {str(value.name): value for value in piece.graph.inputs}
    first = inputs.pop(original, None)
    (hidden,) = inputs.values()
    if first is not None:
        ir.convenience.replace_all_uses_with(first, hidden)
        piece.graph.inputs.remove(first)
