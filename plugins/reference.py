"""What the attention node computes, in torch: the definition of the CUDA kernels.

The kernels, their host emulation, the ONNX Runtime lowering and `verify` are held against this
file. Packing is bit-exact; the attention differs from the hardware only in the order of fp32 sums
and in ``ex2.approx``. The attention is the modified SageAttention3 of ``fastvideo-kernel`` 0.3.5:
no smoothing of Q or K, one level of scales on P.

Two quirks of that implementation have names here:

* ``exact_max``: it starts the maxima of the first key tile from 0, not from minus infinity, so a
  row whose logits are all negative is quantised against too large a maximum. False keeps that.
* ``reciprocal_ulps``: it is compiled with fast math, which forms ``1 / scale`` with up to one unit
  in the last place of error. 0 is the correctly rounded value, which our prologue uses; other
  values show what the error can change (only values that lie on a rounding tie).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fastwan.errors import BadInput
from fastwan.plugins.nvfp4 import BLOCK, E2M1_MAX, round_to_e2m1_values, round_to_e4m3
from fastwan.plugins.packing import (
    HEAD_DIM,
    TILE,
    Operands,
    fake_quantize_groups,
    heads_first,
    pack_operands,
    padded_length,
    reciprocal,
)

__all__ = [
    "HEAD_DIM",
    "TILE",
    "DividedKeys",
    "Operands",
    "Sums",
    "attention_node",
    "attention_node_fp32",
    "merge_sums",
    "pack_operands",
    "padded_length",
    "prologue",
    "sage_attention",
]

_WARP = 32
_ELEMENTS_AT_ONCE = 1 << 23  # logits of one key tile held at a time, 32 MB in fp32


def _bf16(x: Tensor) -> Tensor:
    """`x` rounded to bf16, held in fp32."""
    return x.to(torch.bfloat16).float()


def _exact(x: Tensor) -> Tensor:
    return x


def _warp_sum(x: Tensor) -> Tensor:
    """fp32 sum over the last axis [.., C] -> [.., 1] in the order in which a warp adds.

    Lane i holds channels 4i .. 4i+3 of every head. It adds head by head into four sums, then
    those in pairs; then lanes exchange over distances 16, 8, 4, 2, 1.
    """
    heads = x.reshape(*x.shape[:-1], -1, _WARP, 4)
    sums = heads[..., 0, :, :].clone()
    for head in range(1, heads.shape[-3]):
        sums += heads[..., head, :, :]
    lanes = (sums[..., 0] + sums[..., 1]) + (sums[..., 2] + sums[..., 3])
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, rounded: Callable[[Tensor], Tensor] = _bf16
) -> Tensor:
    """RMS norm across all channels as FastVideo rounds it: ``bf16(bf16(x * rsqrt) * weight)``.

    Args:
        x: [.., C] fp32, C a multiple of 128.
        weight: [C].
        rounded: rounding of the two products.

    Returns:
        [.., C] fp32.
    """
    mean = _warp_sum(x * x) / x.shape[-1]
    # fp64 between two fp32 values makes the reciprocal root correctly rounded, as __frsqrt_rn is.
    inverse = (mean + eps).double().rsqrt().float()
    return rounded(rounded(x * inverse) * weight.float())


def rope(
    x: Tensor, cos: Tensor, sin: Tensor, rounded: Callable[[Tensor], Tensor] = _bf16
) -> Tensor:
    """Interleaved rotary embedding, multiplied in fp32 and rounded once.

    Args:
        x: [B, L, H, D] fp32; pairs are channels 2i, 2i+1.
        cos: [L, D/2] fp32.
        sin: [L, D/2] fp32.

    Returns:
        [B, L, H, D] fp32.
    """
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return rounded(torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2))


def _check_node(
    qkv: Tensor, rope_cos: Tensor, rope_sin: Tensor, num_heads: int, num_tokens: int
) -> None:
    channels = num_heads * HEAD_DIM
    if qkv.dim() != 3 or qkv.shape[2] != 3 * channels:
        raise BadInput(f"qkv has shape {list(qkv.shape)}, not [B, L, {3 * channels}]")
    if not 1 <= num_tokens <= qkv.shape[1]:
        raise BadInput(f"num_tokens {num_tokens} is not within 1 .. {qkv.shape[1]}")
    for name, table in (("rope_cos", rope_cos), ("rope_sin", rope_sin)):
        if table.shape[0] < num_tokens or table.shape[1] != HEAD_DIM // 2:
            raise BadInput(f"{name} has shape {list(table.shape)}, not [L, {HEAD_DIM // 2}]")


def _prologue(
    qkv: Tensor,
    qkv_scale: Tensor,
    qkv_bias: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    rope_cos: Tensor,
    rope_sin: Tensor,
    num_heads: int,
    num_tokens: int,
    eps: float,
    rounded: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v [B, num_tokens, H, D] fp32."""
    _check_node(qkv, rope_cos, rope_sin, num_heads, num_tokens)
    cos, sin = rope_cos[:num_tokens].float(), rope_sin[:num_tokens].float()
    thirds = qkv[:, :num_tokens].chunk(3, dim=-1)
    biases = qkv_bias.chunk(3)
    rows = []
    for index, norm in enumerate((q_norm, k_norm, None)):
        x = rounded(thirds[index].float() * qkv_scale[index])
        x = rounded(x + biases[index].float())
        if norm is not None:
            x = rms_norm(x, norm, eps, rounded)
        heads = x.reshape(*x.shape[:-1], num_heads, HEAD_DIM)
        rows.append(heads if norm is None else rope(heads, cos, sin, rounded))
    return rows[0], rows[1], rows[2]


def prologue(
    qkv: Tensor,
    qkv_scale: Tensor,
    qkv_bias: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    rope_cos: Tensor,
    rope_sin: Tensor,
    *,
    num_heads: int,
    num_tokens: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """From the raw qkv GEMM output to the operands of attention, before they are quantised.

    Every step is rounded to bf16, as FastVideo's bf16 modules do: the GEMM's output after its
    scale, the bias, the normalised value, its product with the weight, and RoPE.

    Args:
        qkv: [B, L, 3C] bf16, L >= num_tokens. Rows from `num_tokens` on are never read.
        qkv_scale: [3] fp32, one per third.
        qkv_bias: [3C] bf16.
        q_norm: [C] bf16.
        k_norm: [C] bf16.
        rope_cos: [L, D/2] fp32.
        rope_sin: [L, D/2] fp32.
        num_heads: H; C = 128 H.
        num_tokens: true number of tokens.
        eps: of the RMS norm.

    Returns:
        q, k, v [B, L, H, D] bf16, zero from `num_tokens` on.

    Raises:
        BadInput: shapes that do not fit.
    """
    rows = _prologue(
        qkv, qkv_scale, qkv_bias, q_norm, k_norm, rope_cos, rope_sin,
        num_heads, num_tokens, eps, _bf16,
    )  # fmt: skip
    padding = (0, 0, 0, 0, 0, qkv.shape[1] - num_tokens)
    q, k, v = (functional.pad(x.to(torch.bfloat16), padding) for x in rows)
    return q, k, v


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


def attention_node(
    qkv: Tensor,
    qkv_scale: Tensor,
    qkv_bias: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    rope_cos: Tensor,
    rope_sin: Tensor,
    *,
    num_heads: int,
    num_tokens: int,
    eps: float,
    softmax_scale: float,
    exact_max: bool = False,
    divided: DividedKeys | None = None,
) -> Tensor:
    """The whole node ``fastwan::SageAttention3``; arguments as `prologue` and `sage_attention`.

    Returns:
        [B, L, C] bf16, zero from row `num_tokens` on.
    """
    rows = prologue(
        qkv, qkv_scale, qkv_bias, q_norm, k_norm, rope_cos, rope_sin,
        num_heads=num_heads, num_tokens=num_tokens, eps=eps,
    )  # fmt: skip
    q, k, v = (x[:, :num_tokens] for x in rows)
    out = sage_attention(q, k, v, softmax_scale, exact_max=exact_max, divided=divided).flatten(2)
    return functional.pad(out, (0, 0, 0, qkv.shape[1] - num_tokens))


def attention_node_fp32(
    qkv: Tensor,
    qkv_scale: Tensor,
    qkv_bias: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    rope_cos: Tensor,
    rope_sin: Tensor,
    *,
    num_heads: int,
    num_tokens: int,
    eps: float,
    softmax_scale: float,
) -> Tensor:
    """The node without any rounding: the same prologue in fp32, then exact softmax attention.

    Returns:
        [B, L, C] fp32, zero from row `num_tokens` on.
    """
    rows = _prologue(
        qkv, qkv_scale, qkv_bias, q_norm, k_norm, rope_cos, rope_sin,
        num_heads, num_tokens, eps, _exact,
    )  # fmt: skip
    q, k, v = (x.transpose(1, 2) for x in rows)
    out = functional.scaled_dot_product_attention(q, k, v, scale=softmax_scale)
    return functional.pad(out.transpose(1, 2).flatten(2), (0, 0, 0, qkv.shape[1] - num_tokens))
