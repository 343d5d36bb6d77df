"""Attention of one tile of queries, computed from the operands that the prologue packed.

The definition is `fastwan.plugins.attention_reference`; this is the part of it that a few rows of a
full-size node need, in numpy, so that a GPU's kernels can be held to it where they run.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from fastwan.plugins.regions.attention import HEAD_DIM
from fastwan.plugins.regions.sage_attention3 import SageAttention3, SageLayout

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float32]

_TILE, _BLOCK, _PIECE = 128, 16, 64
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


class Packed(NamedTuple):
    """Operands of a node in host memory.

    Attributes:
        workspace: uint8, as the prologue left it.
        layout: where they lie.
        apart: bytes from one piece of 64 bytes of k, or of v, to the next; see csrc/layout.h.
    """

    workspace: Array
    layout: SageLayout
    apart: int = _PIECE


def attend(region: SageAttention3, packed: Packed, head: int, tile: int, parts: int = 1) -> Floats:
    """Output rows of one tile of 128 queries in one head.

    Args:
        head: of all batches, B H of them.
        tile: of queries, ceil(num_tokens / 128) of them.
        parts: of the keys, each attended to by itself and merged in fp32; see csrc/key_split.h.

    Returns:
        [128, 128] fp32, before it is rounded to bf16; rows behind the tokens mean nothing.
    """
    rows = packed.layout.padded_tokens
    c = np.float32(np.float32(region.attributes.softmax_scale) * np.float32(math.log2(math.e)))
    q = _rows(packed, "q", head, rows, _PIECE)[tile * _TILE : (tile + 1) * _TILE]
    k = _rows(packed, "k", head, rows, packed.apart)[np.argsort(_stored_tokens(rows))]
    v = _channels(packed, head, rows)
    tiles = rows // _TILE
    bounds = [-(-tiles * part // parts) * _TILE for part in range(parts + 1)]
    made = [
        _sums(region, q, k[begin:end], v[:, begin:end], begin, c) for begin, end in pairwise(bounds)
    ]
    most = np.maximum.reduce([each.most for each in made])
    weights = [np.exp2((each.most - most) * c) for each in made]
    out = sum(weight * each.out for weight, each in zip(weights, made, strict=True))
    total = sum(weight * each.total for weight, each in zip(weights, made, strict=True))
    return np.asarray(out / total, np.float32)


class _Sums(NamedTuple):
    """What a tile of queries has of some keys: sums over them and its largest logit."""

    out: Floats
    total: Floats
    most: Floats


def _sums(
    region: SageAttention3, q: Floats, k: Floats, v: Floats, begin: int, c: np.float32
) -> _Sums:
    """Sums over the keys from row `begin` on, from the last tile of them to the first."""
    attributes = region.attributes
    out = np.zeros((_TILE, HEAD_DIM), np.float32)
    total = np.zeros((_TILE, 1), np.float32)
    most = np.full((_TILE, 1), -np.inf, np.float32)
    last = len(k) - _TILE
    for at in range(last, -1, -_TILE):
        logits = q @ k[at : at + _TILE].T
        if at == last:
            logits[:, max(0, attributes.num_tokens - begin - at) :] = -np.inf
        groups = logits.reshape(_TILE, -1, _BLOCK).max(-1)
        if at == last and not attributes.exact_max:
            groups = np.maximum(groups, np.float32(0))
        before, most = most, np.maximum(most, groups.max(-1, keepdims=True))
        rescale = np.exp2((before - most) * c)
        probability = np.exp2(logits * c - most * c)
        total = total * rescale + probability.sum(-1, keepdims=True, dtype=np.float32)
        scale = np.exp2(groups * c - most * c) / np.float32(6)
        units = probability.reshape(_TILE, -1, _BLOCK) / np.maximum(scale, 2.0**-20)[..., None]
        codes = np.minimum(units, 6).astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
        quantised = codes * scale.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)[..., None]
        out = out * rescale + quantised.reshape(_TILE, _TILE) @ v[:, at : at + _TILE].T
    return _Sums(out, total, most)


def _stored_tokens(rows: int) -> npt.NDArray[np.int64]:
    """Token that is stored at each row of k."""
    stored = np.arange(rows)
    within = stored % 32
    return stored - within + (within // 8) * 2 + ((within % 8) // 2) * 8 + within % 2


def _rows(packed: Packed, name: str, head: int, rows: int, apart: int) -> Floats:
    """q or k of a head, [rows, 128], in the order in which rows are stored."""
    codes = _pieces(packed.workspace, getattr(packed.layout, name), head * rows, rows, apart)
    scales = _scales(packed, f"{name}_scale", head, rows, HEAD_DIM // _BLOCK)
    return _dequantised(codes, scales)


def _channels(packed: Packed, head: int, rows: int) -> Floats:
    """v of a head, [128, rows]."""
    pieces = HEAD_DIM * rows // _TILE
    codes = _pieces(packed.workspace, packed.layout.v, head * pieces, pieces, packed.apart)
    scales = _scales(packed, "v_scale", head, HEAD_DIM, rows // _BLOCK)
    return _dequantised(codes.reshape(HEAD_DIM, rows // 2), scales)


def _pieces(workspace: Array, offset: int, first: int, count: int, apart: int) -> Array:
    """[count, 64] bytes."""
    begin = offset + first * apart
    shape, strides = (count, _PIECE), (apart, 1)
    return np.lib.stride_tricks.as_strided(workspace[begin:], shape, strides, writeable=False)


def _scales(packed: Packed, name: str, head: int, rows: int, groups: int) -> Floats:
    """[rows, groups], out of the order in which the MMA loads them."""
    begin = getattr(packed.layout, name) + head * rows * groups
    flat = packed.workspace[begin : begin + rows * groups]
    tiles = flat.reshape(rows // 64, groups // 4, 16, 4, 4)  # r/64, g/4, r%16, (r/16)%4, g%4
    raw = tiles.transpose(0, 3, 2, 1, 4).reshape(rows, groups)
    return np.asarray(np.ascontiguousarray(raw).view(ml_dtypes.float8_e4m3fn), np.float32)


def _dequantised(codes: Array, scales: Floats) -> Floats:
    raw = np.ascontiguousarray(codes).view(np.uint8)
    values = np.stack([_E2M1[raw & 15], _E2M1[raw >> 4]], -1)
    values = values.reshape(*scales.shape, _BLOCK) * scales[..., None]
    return np.asarray(values.reshape(len(scales), -1), np.float32)
