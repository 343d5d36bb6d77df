"""FP4 attention of q, k and v, in torch: the modified SageAttention3 of ``fastvideo-kernel`` 0.3.5.

No smoothing of Q or K, one level of scales on P. The hardware differs from it only in the order of
fp32 sums and in ``ex2.approx``.

Two quirks of that implementation have names here:

* ``exact_max``: it starts the maxima of the first key tile from 0, not from minus infinity, so a
  row whose logits are all negative is quantised against too large a maximum. False keeps that.
* ``reciprocal_ulps``: it is compiled with fast math, which forms ``1 / scale`` with up to one unit
  in the last place of error. 0 is the correctly rounded value, which our prologue uses; other
  values show what the error can change (only values that lie on a rounding tie).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from fastwan.plugins.nvfp4 import BLOCK, E2M1_MAX, round_to_e2m1_values, round_to_e4m3
from fastwan.plugins.packing import (
    HEAD_DIM,
    TILE,
    fake_quantize_groups,
    heads_first,
    reciprocal,
)

_ELEMENTS_AT_ONCE = 1 << 23  # logits of one key tile held at a time, 32 MB in fp32


class Sums(NamedTuple):
    """Attention before it is divided by its row sums.

    Attributes:
        out: [N, R, D] fp32.
        row_sum: [N, R, 1] fp32.
        row_max: [N, R, 1] fp32, of the logits.
    """

    out: Tensor
    row_sum: Tensor
    row_max: Tensor


def _sums(
    q: Tensor, k: Tensor, v: Tensor, length: int, c: float, exact_max: bool, reciprocal_ulps: int
) -> Sums:
    """Attention of some heads over tiles of keys, from the last to the first.

    Args:
        q: [N, R, D], dequantised fp32, as are k and v.
        k: [N, Lp, D].
        v: [N, D, Lp].
        length: true keys, within the last tile.
        c: of the logits, in base 2.
        exact_max: see the module.
        reciprocal_ulps: see the module.
    """
    heads, rows, _ = q.shape
    out = q.new_zeros(q.shape)
    row_sum = q.new_zeros((heads, rows, 1))
    row_max = q.new_full((heads, rows, 1), -math.inf)
    last = k.shape[1] - TILE
    for begin in range(last, -1, -TILE):
        keys = slice(begin, begin + TILE)
        logits = q @ k[:, keys].transpose(1, 2)
        if begin == last:
            logits[..., length - begin :] = -math.inf
        group_max = logits.view(heads, rows, TILE // BLOCK, BLOCK).amax(-1)
        if begin == last and not exact_max:
            group_max = group_max.clamp_(min=0.0)
        previous, row_max = row_max, torch.maximum(row_max, group_max.amax(-1, keepdim=True))
        rescale = torch.exp2((previous - row_max) * c)

        probability = logits.mul_(c).sub_(row_max * c).exp2_()
        row_sum = row_sum * rescale + probability.sum(-1, keepdim=True)
        # One level: the largest value of 16 keys becomes 6. Values are divided by the scale before
        # it is rounded, the MMA multiplies by the rounded one.
        scale = torch.exp2(group_max * c - row_max * c) / E2M1_MAX
        mma_scale = round_to_e4m3(scale).float().unsqueeze(-1)
        # A scale this small rounds to 0, so what the division gives does not matter.
        scale = scale.clamp_(min=2.0**-20).unsqueeze(-1)
        groups = probability.view(heads, rows, TILE // BLOCK, BLOCK)
        inverse = reciprocal(scale, reciprocal_ulps)
        groups = groups * inverse if reciprocal_ulps else groups / scale
        quantised = round_to_e2m1_values(groups).mul_(mma_scale).view(heads, rows, TILE)
        out = out.mul_(rescale).add_(quantised @ v[:, :, keys].transpose(1, 2))
    return Sums(out, row_sum, row_max)


def merge_sums(parts: Sequence[Sums], c: float) -> Tensor:
    """Attention over the keys of all parts [N, R, D] fp32, as ``merge_parts`` in csrc adds it."""
    largest = torch.stack([part.row_max for part in parts]).amax(0)
    out, row_sum = torch.zeros_like(parts[0].out), torch.zeros_like(parts[0].row_sum)
    for part in parts:
        weight = torch.exp2((part.row_max - largest) * c)
        row_sum += weight * part.row_sum
        out += weight * part.out
    return out * reciprocal(row_sum, 0)


class DividedKeys(NamedTuple):
    """Tiles of queries whose keys are divided, as on a GPU with an uneven last wave.

    Attributes:
        whole: tiles of 128 queries, counted over batch and heads, that see all keys at once.
        parts: of the keys of each tile behind them, in tiles of 128.
    """

    whole: int
    parts: int


def _attend_divided(
    q: Tensor, k: Tensor, v: Tensor, length: int, c: float, exact_max: bool,
    divided: DividedKeys,
) -> Iterator[tuple[int, slice, Tensor]]:  # fmt: skip
    """Head, rows and output of the tiles behind `divided.whole`; arguments as `_sums`."""
    heads, rows, _ = q.shape
    tiles = rows // TILE
    bounds = [-(-tiles * part // divided.parts) * TILE for part in range(divided.parts + 1)]
    for head in range(divided.whole // tiles, heads):
        queries = slice(max(0, divided.whole - head * tiles) * TILE, rows)
        sums = [
            _sums(
                q[head : head + 1, queries], k[head : head + 1, begin:end],
                v[head : head + 1, :, begin:end], min(length, end) - begin, c, exact_max, 0,
            )
            for begin, end in pairwise(bounds)
        ]  # fmt: skip
        yield head, queries, merge_sums(sums, c)[0]


def sage_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    softmax_scale: float,
    *,
    exact_max: bool = False,
    reciprocal_ulps: int = 0,
    divided: DividedKeys | None = None,
) -> Tensor:
    """FP4 attention over tiles of 128 keys, from the last tile to the first.

    Args:
        q: [B, L, H, 128] bf16.
        k: [B, L, H, 128] bf16.
        v: [B, L, H, 128] bf16.
        softmax_scale: applied to the fp32 logits, in base 2.
        exact_max: see the module.
        reciprocal_ulps: see the module.
        divided: tiles of queries whose keys are divided. P is quantised against the largest
            logit so far, so those tiles differ by the noise of the format.

    Returns:
        [B, L, H, 128] bf16.

    Raises:
        BadInput: wrong shape.
    """
    batch, length, heads, _ = q.shape
    rows, keys, values = (
        fake_quantize_groups(x, reciprocal_ulps).flatten(0, 1)
        for x in (heads_first(q), heads_first(k), heads_first(v).transpose(2, 3))
    )
    c = torch.tensor(softmax_scale * math.log2(math.e), dtype=torch.float32).item()
    out = torch.empty_like(rows, dtype=torch.bfloat16)
    step = max(1, _ELEMENTS_AT_ONCE // (rows.shape[1] * TILE))
    for begin in range(0, batch * heads, step):
        part = slice(begin, begin + step)
        some = _sums(rows[part], keys[part], values[part], length, c, exact_max, reciprocal_ulps)
        out[part] = (some.out * reciprocal(some.row_sum, 0)).to(torch.bfloat16)
    if divided is not None:
        for head, part, some_rows in _attend_divided(
            rows, keys, values, length, c, exact_max, divided
        ):
            out[head, part] = some_rows.to(torch.bfloat16)
    return out.view(batch, heads, -1, HEAD_DIM)[:, :, :length].transpose(1, 2).contiguous()
