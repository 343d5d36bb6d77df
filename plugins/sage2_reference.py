"""What ``fastwan::SageAttention2`` computes, in torch: the definition of its CUDA kernels.

SageAttention2++ (arXiv 2505.21136, version 2.2.0): int8 queries and keys, e4m3 probabilities and
values, products of 64 keys summed in fp16 and added in fp32. The prologue is bit-exact; the
attention differs from the hardware in ``ex2.approx``, in the order of fp32 sums, and in how an MMA
adds up before it rounds to fp16.

Where the published kernels leave the result to an approximation, this is the exact operation:
divisions are correctly rounded (Triton's are to 2 units in the last place), the mean of K is summed
in an order that is written down here, and the last tile's logits are scaled like the others'.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fastwan.plugins.nvfp4 import round_to_e4m3
from fastwan.plugins.packing import HEAD_DIM, heads_first
from fastwan.plugins.prologue_reference import prologue

QUERY_ROWS = 32
"""Queries whose scales lie side by side: those of a warp."""
KEY_TILE = 64
SPAN = 32
"""Tokens of a partial sum of K."""
SEGMENTS = 8
"""Parts of the spans that are added up apart."""
VALUE_RANGE = 2.25
"""Largest value: 64 products with 448 stay inside fp16."""
MAXIMUM_OFFSET = 8.807
"""Of log2: probabilities reach 448, the largest e4m3 number."""
LOWEST = -5000000.0
_SMALLEST = 1e-7
_ELEMENTS_AT_ONCE = 1 << 23  # logits of one key tile held at a time


class Granularity(StrEnum):
    """Which rows share a scale, and how int8 is rounded.

    ``thread``: rows r, r+8, r+16, r+24 of 32 queries, and rows 2t, 2t+1, 2t+8, 2t+9, .. of 64 keys;
    half away from zero. Published for compute capability 8.9. ``warp``: 32 queries, 64 keys;
    nearest even. Published for 12.0 and 12.1.
    """

    THREAD = "thread"
    WARP = "warp"


class Sage2Operands(NamedTuple):
    """Operands of the attention; Lp is L padded to 128, G scales belong to 32 queries or 64 keys.

    Attributes:
        q: [B, H, Lp, 128] int8.
        q_scale: [B, H, Lp/32, G] fp32; G = 8 per thread, 1 per warp.
        k: [B, H, Lp, 128] int8.
        k_scale: [B, H, Lp/64, G] fp32; G = 4 per thread, 1 per warp.
        v: [B, H, 128, Lp] e4m3.
        v_scale: [B, H, 128] fp32.
    """

    q: Tensor
    q_scale: Tensor
    k: Tensor
    k_scale: Tensor
    v: Tensor
    v_scale: Tensor


def _divided(dividend: Tensor | float, divisor: Tensor | float) -> Tensor:
    """The correctly rounded quotient: by a number, torch multiplies with a reciprocal on a GPU."""
    if isinstance(dividend, float):
        assert isinstance(divisor, Tensor)
        dividend = torch.full_like(divisor, dividend)
    elif isinstance(divisor, float):
        divisor = torch.full_like(dividend, divisor)
    quotient: Tensor = dividend / divisor
    return quotient


def key_mean(k: Tensor) -> Tensor:
    """Mean over the tokens, rounded to bf16, summed in fp32 in the order of the kernels.

    Args:
        k: [B, L, H, 128] bf16.

    Returns:
        [B, 1, H, 128] fp32.
    """
    tokens = k.shape[1]
    spans = -(-tokens // SPAN)
    length = -(-spans // SEGMENTS)
    padding = SEGMENTS * length * SPAN - tokens
    parts = functional.pad(k.float(), (0, 0, 0, 0, 0, padding))
    parts = parts.unflatten(1, (SEGMENTS, length, SPAN))
    for _ in range(3):  # tokens of a span, spans of a segment, segments
        total = torch.zeros_like(parts[..., 0, :, :])
        for index in range(parts.shape[-3]):
            total = total + parts[..., index, :, :]
        parts = total
    return _divided(parts, float(tokens)).to(torch.bfloat16).float().unsqueeze(1)


def _grouped(x: Tensor, granularity: Granularity, keys: bool) -> Tensor:
    """[B, H, Lp, D] as [B, H, blocks, .., G, .., D], with an axis for what shares a scale."""
    shape = (8, 4, 2) if keys else (4, 8, 1)
    if granularity is Granularity.WARP:
        shape = (KEY_TILE if keys else QUERY_ROWS, 1, 1)
    return x.reshape(*x.shape[:2], -1, *shape, HEAD_DIM)


def _quantise_rows(x: Tensor, granularity: Granularity, keys: bool) -> tuple[Tensor, Tensor]:
    """int8 codes of [B, H, Lp, D] fp32, and the scales [B, H, blocks, G]."""
    groups = _grouped(x, granularity, keys)
    amax = groups.abs().amax((3, 5, 6))
    if granularity is Granularity.THREAD:
        scale = _divided(amax, 127.0) + _SMALLEST
        quotient = groups / scale[:, :, :, None, :, None, None]
        codes = (quotient + torch.where(quotient >= 0, 0.5, -0.5)).trunc()
    else:
        limited = amax.clamp(min=_SMALLEST)
        scale = _divided(limited, 127.0)
        codes = (groups * _divided(127.0, limited)[:, :, :, None, :, None, None]).round()
    return codes.to(torch.int8).view(x.shape), scale


def quantise(q: Tensor, k: Tensor, v: Tensor, granularity: Granularity) -> Sage2Operands:
    """Operands of the attention from true tokens only.

    Args:
        q: [B, L, H, 128] bf16.
        k: [B, L, H, 128] bf16.
        v: [B, L, H, 128] bf16.
    """
    centred = k.float() - key_mean(k)
    if granularity is Granularity.THREAD:
        centred = centred.to(torch.bfloat16).float()
    queries = _quantise_rows(heads_first(q.float()), granularity, keys=False)
    keys = _quantise_rows(heads_first(centred), granularity, keys=True)
    values = heads_first(v.float()).transpose(2, 3)
    amax = values.abs().amax(-1, keepdim=True)
    factor = torch.where(amax > 0, _divided(VALUE_RANGE, amax), torch.zeros_like(amax))
    codes = round_to_e4m3(values * factor)
    return Sage2Operands(*queries, *keys, codes, _divided(amax, VALUE_RANGE).squeeze(-1))


def _fused(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """fp32 ``a * b + c``, rounded once."""
    return (a.double() * b.double() + c.double()).float()


def _row_scales(scale: Tensor, granularity: Granularity, keys: bool) -> Tensor:
    """Scales [N, blocks, G] of each row, [N, rows]."""
    if granularity is Granularity.WARP:
        return scale.repeat_interleave(KEY_TILE if keys else QUERY_ROWS, 2).flatten(1)
    if keys:
        return scale.repeat_interleave(2, 2).repeat(1, 1, 8).flatten(1)
    return scale.repeat(1, 1, 4).flatten(1)


def _attend(
    operands: Sage2Operands, length: int, c: Tensor, granularity: Granularity, sum_keys: int
) -> Tensor:
    """Attention of some heads: fp32 operands without the batch axis -> [N, Lp, D] fp32."""
    heads, rows, _ = operands.q.shape
    q, k, v = operands.q, operands.k, operands.v
    q_scale = _row_scales(operands.q_scale, granularity, keys=False).unsqueeze(-1)
    k_scale = _row_scales(operands.k_scale, granularity, keys=True).unsqueeze(1)
    out = q.new_zeros((heads, rows, HEAD_DIM))
    row_sum = q.new_zeros((heads, rows, 1))
    row_max = q.new_full((heads, rows, 1), LOWEST)
    offset = torch.tensor(-MAXIMUM_OFFSET, device=q.device)
    for begin in range(0, length, KEY_TILE):
        keys = slice(begin, min(begin + KEY_TILE, length))
        # Sums of products are whole numbers below 2^24: exact in fp32 in any order.
        logits = q @ k[:, keys].transpose(1, 2)
        factor = c * (q_scale * k_scale[:, :, keys])
        largest = _fused(logits, factor, offset).amax(-1, keepdim=True)
        previous, row_max = row_max, torch.maximum(row_max, largest)
        rescale = torch.exp2(previous - row_max)
        probability = torch.exp2(_fused(logits, factor, -row_max))
        row_sum = row_sum * rescale + probability.sum(-1, keepdim=True)
        quantised = round_to_e4m3(probability).float()
        product = torch.zeros_like(out, dtype=torch.float16)
        for first in range(0, quantised.shape[-1], sum_keys):
            some = quantised[..., first : first + sum_keys]
            values = v[:, :, begin + first : begin + first + some.shape[-1]]
            product = (product.float() + some @ values.transpose(1, 2)).half()
        out = _fused(out, rescale, product)
    return out * (1.0 / row_sum) * operands.v_scale.unsqueeze(1)


def attend(
    operands: Sage2Operands,
    num_tokens: int,
    softmax_scale: float,
    granularity: Granularity,
    *,
    sum_keys: int = 32,
) -> Tensor:
    """Attention over tiles of 64 keys, from the first to the last.

    Args:
        num_tokens: true tokens L, of queries and keys.
        softmax_scale: of the logits.
        sum_keys: keys whose products one MMA adds before it rounds to fp16: 32 on e4m3, 16 on
            compute capability 9.0.

    Returns:
        [B, L, H, 128] bf16.
    """
    batch, heads, padded, _ = operands.q.shape
    flat = [x.float().flatten(0, 1) for x in operands]
    log2e = torch.tensor(math.log2(math.e), dtype=torch.float32)
    c = (torch.tensor(softmax_scale, dtype=torch.float32) * log2e).to(operands.q.device)
    out = torch.empty_like(operands.q, dtype=torch.bfloat16).flatten(0, 1)
    step = max(1, _ELEMENTS_AT_ONCE // (padded * KEY_TILE))
    for begin in range(0, batch * heads, step):
        part = slice(begin, begin + step)
        some = Sage2Operands(*(x[part] for x in flat))
        out[part] = _attend(some, num_tokens, c, granularity, sum_keys).to(torch.bfloat16)
    whole = out.view(batch, heads, padded, HEAD_DIM)[:, :, :num_tokens]
    return whole.transpose(1, 2).contiguous()


def true_rows(
    qkv: Tensor,
    qkv_scale: Tensor,
    qkv_bias: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    rope_cos: Tensor,
    rope_sin: Tensor,
    row_scale: Tensor | None = None,
    *,
    num_heads: int,
    num_tokens: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of the true tokens, before they are quantised.

    Arguments as `fastwan.plugins.prologue_reference.prologue`.

    Args:
        row_scale: [B, L, 1] fp32; ``bf16(qkv * row_scale)`` takes the place of qkv. None where rows
            have no scale.

    Returns:
        [B, num_tokens, H, 128] bf16 each.
    """
    if row_scale is not None:
        qkv = (qkv.float() * row_scale).to(qkv.dtype)
    q, k, v = prologue(
        qkv, qkv_scale, qkv_bias, q_norm, k_norm, rope_cos, rope_sin,
        num_heads=num_heads, num_tokens=num_tokens, eps=eps,
    )  # fmt: skip
    return q[:, :num_tokens], k[:, :num_tokens], v[:, :num_tokens]


def attention_node(
    qkv: Tensor,
    qkv_scale: Tensor,
    qkv_bias: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    rope_cos: Tensor,
    rope_sin: Tensor,
    row_scale: Tensor | None = None,
    *,
    num_heads: int,
    num_tokens: int,
    eps: float,
    softmax_scale: float,
    granularity: Granularity,
    sum_keys: int = 32,
) -> Tensor:
    """The whole node; arguments as `true_rows` and `attend`.

    Returns:
        [B, L, C] bf16, zero from row `num_tokens` on.
    """
    q, k, v = true_rows(
        qkv, qkv_scale, qkv_bias, q_norm, k_norm, rope_cos, rope_sin, row_scale,
        num_heads=num_heads, num_tokens=num_tokens, eps=eps,
    )  # fmt: skip
    operands = quantise(q, k, v, granularity)
    out = attend(operands, num_tokens, softmax_scale, granularity, sum_keys=sum_keys).flatten(2)
    return functional.pad(out, (0, 0, 0, qkv.shape[1] - num_tokens))
