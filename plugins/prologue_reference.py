"""What the attention's prologue computes, in torch: from the raw qkv GEMM to q, k and v.

The sums of the norm are in the order in which a warp adds, so that the kernel's packed operands can
be held to these byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from fastwan.errors import BadInput
from fastwan.plugins.packing import HEAD_DIM

_WARP = 32

Rounding = Callable[[Tensor], Tensor]
"""Of an fp32 tensor to what a format holds, in fp32."""


def _bf16(x: Tensor) -> Tensor:
    """`x` rounded to bf16, held in fp32."""
    return x.to(torch.bfloat16).float()


def warp_sum(x: Tensor) -> Tensor:
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


def rms_norm(x: Tensor, weight: Tensor, eps: float, rounded: Rounding = _bf16) -> Tensor:
    """RMS norm across all channels as FastVideo rounds it: ``bf16(bf16(x * rsqrt) * weight)``.

    Args:
        x: [.., C] fp32, C a multiple of 128.
        weight: [C].
        rounded: rounding of the two products.

    Returns:
        [.., C] fp32.
    """
    mean = warp_sum(x * x) / x.shape[-1]
    # fp64 between two fp32 values makes the reciprocal root correctly rounded, as __frsqrt_rn is.
    inverse = (mean + eps).double().rsqrt().float()
    return rounded(rounded(x * inverse) * weight.float())


def rope(x: Tensor, cos: Tensor, sin: Tensor, rounded: Rounding = _bf16) -> Tensor:
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


def prologue_rows(
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
    rounded: Rounding,
) -> tuple[Tensor, Tensor, Tensor]:
    """What `prologue` computes, of the true tokens, with another rounding; arguments as there.

    Args:
        rounded: rounding of every step.

    Returns:
        q, k, v [B, num_tokens, H, D] fp32.

    Raises:
        BadInput: shapes that do not fit.
    """
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
    rows = prologue_rows(
        qkv, qkv_scale, qkv_bias, q_norm, k_norm, rope_cos, rope_sin,
        num_heads, num_tokens, eps, _bf16,
    )  # fmt: skip
    padding = (0, 0, 0, 0, 0, qkv.shape[1] - num_tokens)
    q, k, v = (functional.pad(x.to(torch.bfloat16), padding) for x in rows)
    return q, k, v
