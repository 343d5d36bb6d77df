"""What stands before attention by standard operators: bias, RMS norm across the heads, RoPE."""

from __future__ import annotations

import torch
from torch import Tensor


def rotated_heads(
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
    """The reference's prologue with sums in the order of the builder's choice.

    q and k go through norm and RoPE as one tensor, and the builder joins v: two kernels over the
    GEMM's output make all three.

    Returns:
        q and k [B, H, num_tokens, D], and [B, num_tokens, 3, C] whose last third is v.
    """
    batch, channels, tokens = qkv.shape[0], qkv.shape[2] // 3, num_tokens
    thirds, dtype = (batch, -1, 3, channels), qkv.dtype
    factor, bias = qkv_scale.reshape(3, 1), qkv_bias.reshape(3, channels)
    # The mean of squares has a path of its own from the GEMM's output, over all rows: were any
    # value of it the other kernel's too, the builder would store it in fp32.
    x = (qkv.reshape(thirds).float() * factor).to(dtype) + bias
    mean = (x.float() * x.float()).mean(-1, keepdim=True)
    # Keys past the last token are left out, and with them the queries: one shape for all.
    x = (qkv[:, :tokens].reshape(thirds).float() * factor).to(dtype) + bias
    scale = torch.rsqrt(mean[:, :tokens, :2] + eps)
    pairs = (x[:, :, :2].float() * scale).to(dtype) * torch.stack([q_norm, k_norm])
    pairs = pairs.reshape(batch, tokens, 2, num_heads, -1, 2).float()
    cos, sin = rope_cos[:tokens, None, None], rope_sin[:tokens, None, None]
    even, odd = pairs[..., 0], pairs[..., 1]
    rotated = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    rotated = rotated.reshape(batch, tokens, 2, num_heads, -1).to(dtype)
    q, k = rotated.permute(2, 0, 3, 1, 4).unbind()
    return q, k, x
