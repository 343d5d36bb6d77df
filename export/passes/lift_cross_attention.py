"""Lift cross-attention, from its query's bias to its quantiser, into one node over few keys."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from fastwan.export.passes.few_keys import KEY_TILE, few_keys
from fastwan.export.passes.graphs import chain, producer
from fastwan.export.passes.lifting import lift, quantisers, scalar, with_vector
from fastwan.plugins.lifted import TEXT

CROSS_ATTENTION = "CrossAttention"
HEAD_DIM = 128
"""That the kernel is made for."""
_SWAPPED = [0, 2, 1, 3]


@dataclass(frozen=True)
class _Query:
    """``rms_norm(y + bias) * weight`` and what it is made of."""

    y: ir.Value
    bias: ir.Value
    weight: ir.Value
    eps: float


def lift_cross_attention(model: ir.Model) -> tuple[ir.Model, bool]:
    """Replace each cross-attention by ``fastwan::CrossAttention``.

    The node has inputs y (raw output of the query's GEMM), bias, norm_weight, k, v, key_bias and
    key_tiles, attributes num_heads, eps and scale; its outputs are those of the quantiser behind
    it. The last two inputs come of `few_keys`, once for all blocks.

    Requires: the graph reads the text from the input `TEXT`, with zero rows behind a prompt; keys
    and values are functions of their own row of it; RMS norm and heads as they are traced; the
    quantiser's global scale is 1.
    Ensures: the outputs keep their names. The values are those over all rows, but for rounding:
    equal keys are summed in another order.

    Args:
        model: changed in place.
    """
    text = next((value for value in model.graph.inputs if value.name == TEXT), None)
    if text is None:
        return model, False
    keys: tuple[ir.Value, ir.Value] | None = None
    for quantise in quantisers(model):
        attention = _attention(quantise.inputs[0])
        if attention is None:
            continue
        scale = attention.attributes.get("scale")
        query = _query(attention.inputs[0])
        k, v = _rows(attention.inputs[1]), attention.inputs[2]
        if query is None or k is None or scale is None or not _fits(k, v, text):
            continue
        assert v is not None
        assert v.shape is not None
        keys = keys or few_keys(model, text)
        inputs = [query.y, query.bias, query.weight, k, v, *keys]
        heads = int(v.shape.numpy()[1])
        attributes = {"num_heads": heads, "eps": query.eps, "scale": scale.as_float()}
        lift(model, quantise, CROSS_ATTENTION, inputs, quantise.outputs, attributes)
    return model, keys is not None


def _attention(value: ir.Value | None) -> ir.Node | None:
    """The Attention without mask or past whose joined heads `value` is."""
    found = chain(value, "Reshape", "Transpose", "Attention")
    if found is None or not _swaps(found[1]):
        return None
    attention = found[2]
    return attention if len(attention.inputs) == 3 and len(attention.outputs) == 1 else None


def _swaps(transpose: ir.Node) -> bool:
    return list(transpose.attributes["perm"].as_ints()) == _SWAPPED


def _rows(value: ir.Value | None) -> ir.Value | None:
    """[1, L, C] whose heads `value` [1, H, L, D] is."""
    found = chain(value, "Transpose", "Reshape")
    return found[1].inputs[0] if found is not None and _swaps(found[0]) else None


def _query(value: ir.Value | None) -> _Query | None:
    weighted = with_vector(producer(_rows(value), "Mul"))
    normed = chain(weighted[0], "Cast", "Mul") if weighted is not None else None
    if weighted is None or normed is None:
        return None
    wide, factor = normed[1].inputs
    mean = chain(factor, "Reciprocal", "Sqrt", "Add", "ReduceMean", "Mul")
    origins = {_cast_from(each) for each in (wide, *(mean[-1].inputs if mean else ()))}
    (biased,) = origins if len(origins) == 1 else (None,)
    found = with_vector(producer(biased, "Add"))
    eps = scalar(mean[2].inputs[1]) if mean is not None else None
    if found is None or eps is None:
        return None
    return _Query(*found, weighted[1], eps)


def _cast_from(value: ir.Value | None) -> ir.Value | None:
    cast = producer(value, "Cast")
    return None if cast is None else cast.inputs[0]


def _fits(k: ir.Value, v: ir.Value | None, text: ir.Value) -> bool:
    """Whether the kernel takes keys [1, L, C] and values [1, H, L, D] of the text's rows."""
    if v is None or k.shape is None or v.shape is None or text.shape is None:
        return False
    (batch, heads, rows, width), length = v.shape.numpy(), int(text.shape.numpy()[1])
    return (
        list(k.shape.numpy()) == [batch, rows, heads * width]
        and (batch, rows, width) == (1, length, HEAD_DIM)
        and length % KEY_TILE == 0
    )
