"""How many keys of a prompt count: what cross-attention over few of them adds to its logits.

Rows of text behind a prompt are zeros, so their keys and values are equal, bit for bit. One of them
with log(rows) added to its logit stands for all. Which it is, the prompt alone decides: the nodes
here depend on it alone and are computed on the device with its keys and values, so that one
recording serves every prompt.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from fastwan.export.passes.graphs import constant
from fastwan.plugins.lifted import KEY_BIAS, KEY_TILES

KEY_TILE = 64
"""Keys that the kernel takes at a time."""


def few_keys(model: ir.Model, text: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Add the nodes that count the keys of a prompt, in front of all others.

    With n tokens, the last row of the text that is not all zeros being number n: the bias is 0 for
    the first n keys, log(rows - n) for the next one, minus infinity for the others.

    Args:
        model: changed in place.
        text: its input [1, rows, width] with zero rows behind the prompt.

    Returns:
        key_bias [rows] fp32 and key_tiles [1] int32, tiles of `KEY_TILE` keys that hold the first
        n + 1.
    """
    assert text.shape is not None
    rows = int(text.shape.numpy()[1])
    graph = model.graph
    nodes: list[ir.Node] = []

    def number(name: str, array: np.ndarray) -> ir.Value:
        return constant(graph, f"text.{name}", ir.tensor(array))

    def add(op_type: str, *inputs: ir.Value, kind: ir.DataType, shape: list[int]) -> ir.Value:
        attributes: dict[str, int] = {}
        if op_type == "Cast":
            attributes["to"] = int(kind)
        if op_type == "ReduceMax":
            attributes["keepdims"] = 0
        name = f"text.keys/{len(nodes):02d}_{op_type}"
        node = ir.node(op_type, list(inputs), attributes, name=name)
        nodes.append(node)
        (value,) = node.outputs
        value.name, value.type, value.shape = f"{name}/out", ir.TensorType(kind), ir.Shape(shape)
        return value

    fp32, yes = ir.DataType.FLOAT, ir.DataType.BOOL
    zero, one = number("zero", np.array(0, np.float32)), number("one", np.array(1, np.float32))
    index = number("index", np.arange(rows, dtype=np.float32))
    wide = add("Cast", text, kind=fp32, shape=list(text.shape.numpy()))
    size = add("Abs", wide, kind=fp32, shape=list(text.shape.numpy()))
    last = number("last_axis", np.array([2]))
    largest = add("ReduceMax", size, last, kind=fp32, shape=[1, rows])
    full = add("Greater", largest, zero, kind=yes, shape=[1, rows])
    behind = add("Add", index, one, kind=fp32, shape=[rows])
    counted = add("Where", full, behind, zero, kind=fp32, shape=[1, rows])
    both = number("both_axes", np.array([0, 1]))
    tokens = add("ReduceMax", counted, both, kind=fp32, shape=[])
    keys = add("Add", tokens, one, kind=fp32, shape=[])
    equal = add("Sub", number("rows", np.array(rows, np.float32)), tokens, kind=fp32, shape=[])
    addend = add("Log", add("Max", equal, one, kind=fp32, shape=[]), kind=fp32, shape=[])
    of_prompt = add("Less", index, tokens, kind=yes, shape=[rows])
    within = add("Less", index, keys, kind=yes, shape=[rows])
    never = number("never", np.array(-math.inf, np.float32))
    one_row = add("Where", within, addend, never, kind=fp32, shape=[rows])
    bias = add("Where", of_prompt, zero, one_row, kind=fp32, shape=[rows])

    most = add("Min", keys, number("rows", np.array(rows, np.float32)), kind=fp32, shape=[])
    part = add("Div", most, number("key_tile", np.array(KEY_TILE, np.float32)), kind=fp32, shape=[])
    whole = add("Ceil", part, kind=fp32, shape=[])
    single = add("Reshape", whole, number("single", np.array([1])), kind=fp32, shape=[1])
    tiles = add("Cast", single, kind=ir.DataType.INT32, shape=[1])
    bias.name, tiles.name = KEY_BIAS, KEY_TILES
    graph.insert_before(graph.node(0), nodes)
    return bias, tiles
