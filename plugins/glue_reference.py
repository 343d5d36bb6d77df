"""What the glue between two FP4 GEMMs computes, in torch: the definition of its CUDA kernels.

Every function ends in the quantiser of an activation (`nvfp4.quantize_activation`, global scale 1)
and returns codes [1, L, C/2] uint8 and scales [1, L, C/16] float8_e4m3fn. Roundings are those of
the exported module (``export/models/wan.py``), one for each of its bf16 results.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastwan.plugins.nvfp4 import quantize_activation
from fastwan.plugins.packing import HEAD_DIM
from fastwan.plugins.prologue_reference import rms_norm, warp_sum

KEY_TILE = 64
"""Keys that ``key_tiles`` counts as one."""
_STAGE = 32  # keys between two looks at the maximum
_CUBE = 0.044715


def gelu_tanh(x: Tensor) -> Tensor:
    """tanh GELU of bf16 values, rounded once: ``x / (1 + exp(-2u))``.

    ``u = sqrt(2/pi) (x + 0.044715 x^3)``. ``1 + tanh(u)`` in fp32 is the same but for its
    cancellation where x is below -3: there it is off by up to 6e-8 of x.

    Args:
        x: any shape, bf16 and finite.

    Returns:
        bf16, shape of `x`.
    """
    wide = x.double()
    u = math.sqrt(2 / math.pi) * (wide + _CUBE * wide**3)
    return (wide * torch.sigmoid(2 * u)).to(torch.bfloat16)


def gelu_quantize(y: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The node ``fastwan::GeluQuantize``.

    Args:
        y: [1, L, F] bf16, raw output of the GEMM.
        bias: [F] bf16.
    """
    return quantize_activation(gelu_tanh(y + bias))


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """The node ``fastwan::Quantize``.

    Args:
        x: [1, L, C] bf16.
    """
    return quantize_activation(x)


def layer_norm(x: Tensor, eps: float) -> Tensor:
    """Layer norm without weights in fp32, summed as a warp adds.

    Args:
        x: [.., C] fp32, C a multiple of 128.

    Returns:
        [.., C] fp32.
    """
    # A tensor: torch on a GPU multiplies by the rounded reciprocal of a number.
    channels = torch.full_like(x[..., :1], x.shape[-1])
    centred = x - warp_sum(x) / channels
    variance = warp_sum(centred * centred) / channels
    # fp64 between two fp32 values makes the reciprocal root correctly rounded, as __frsqrt_rn is.
    return centred * (variance + eps).double().rsqrt().float()


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float, add_one: bool) -> Tensor:
    """bf16 of the layer norm of `x` [.., C] bf16, times scale or ``1 + scale``, plus shift."""
    factor = 1 + scale if add_one else scale
    return (layer_norm(x.float(), eps) * factor + shift).to(torch.bfloat16)


def _residual(y: Tensor, bias: Tensor, hidden: Tensor, gate: Tensor | None) -> Tensor:
    added = y + bias
    if gate is not None:
        added = (added.float() * gate).to(torch.bfloat16)
    return hidden + added


def residual_norm_quantize(
    y: Tensor,
    bias: Tensor,
    hidden: Tensor,
    gate: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    *,
    eps: float,
    add_one: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The node ``fastwan::ResidualNormQuantize``.

    Args:
        y: [1, L, C] bf16, raw output of the GEMM; C a multiple of 128.
        bias: [C] bf16.
        hidden: [1, L, C] bf16, the residual.
        gate: [C] fp32, or None.
        scale: [C] fp32.
        shift: [C] fp32.
        eps: of the layer norm.
        add_one: multiply the norm by ``1 + scale``, not by ``scale``.

    Returns:
        hidden [1, L, C] bf16, codes and scales of the modulated norm.
    """
    hidden = _residual(y, bias, hidden, gate)
    return hidden, *norm_quantize(hidden, scale, shift, eps=eps, add_one=add_one)


def residual_norm(
    y: Tensor,
    bias: Tensor,
    hidden: Tensor,
    gate: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    *,
    eps: float,
    add_one: bool,
) -> Tensor:
    """The node ``fastwan::ResidualNorm``; arguments are those of `residual_norm_quantize`.

    Returns:
        The modulated norm [1, L, C] bf16.
    """
    return modulated_norm(_residual(y, bias, hidden, gate), scale, shift, eps, add_one)


def norm_quantize(
    x: Tensor, scale: Tensor, shift: Tensor, *, eps: float, add_one: bool
) -> tuple[Tensor, Tensor]:
    """The node ``fastwan::NormQuantize``.

    Args:
        x: [1, L, C] bf16, C a multiple of 128.
        scale: [C] fp32.
        shift: [C] fp32.
        eps: of the layer norm.
        add_one: multiply the norm by ``1 + scale``, not by ``scale``.
    """
    return quantize_activation(modulated_norm(x, scale, shift, eps, add_one))


def few_keys(text: Tensor) -> tuple[Tensor, Tensor]:
    """Which keys of a prompt `cross_attention` reads: one stands for all rows of zeros.

    With n tokens, the last row that is not all zeros being number n: the bias is 0 for the first n
    keys, ``log(rows - n)`` for the next one, minus infinity for the others. Nothing waits for the
    device.

    Args:
        text: [1, rows, width], zero rows behind the prompt.

    Returns:
        key_bias [rows] fp32, and key_tiles [1] int32, tiles of 64 keys that hold the first n + 1.
    """
    rows = text.shape[1]
    index = torch.arange(rows, dtype=torch.float32, device=text.device)
    tokens = ((text[0] != 0).any(-1) * (index + 1)).amax()
    one_row = (rows - tokens).clamp(min=1).log()
    behind = torch.where(index < tokens + 1, one_row, -math.inf)
    tiles = ((tokens + 1).clamp(max=rows) / KEY_TILE).ceil()
    return torch.where(index < tokens, 0.0, behind), tiles.to(torch.int32).view(1)


def _attend(q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor, scale: float) -> Tensor:
    """Online softmax over 32 keys at a time, P in bf16. q, k, v [H, L or Lk, D] fp32."""
    out, total = torch.zeros_like(q), q.new_zeros((*q.shape[:-1], 1))
    largest = torch.full_like(total, -math.inf)
    for keys, values, bias in zip(
        k.split(_STAGE, 1), v.split(_STAGE, 1), key_bias.split(_STAGE), strict=True
    ):
        logits = q @ keys.transpose(1, 2) * scale + bias
        before, largest = largest, torch.maximum(largest, logits.amax(-1, keepdim=True))
        base = largest.masked_fill(largest == -math.inf, 0.0)
        rescale = torch.exp(before - base)
        probability = torch.exp(logits - base)
        total = total * rescale + probability.sum(-1, keepdim=True)
        out = out * rescale + probability.to(torch.bfloat16).float() @ values
    return out / total


def attention_to_keys(
    y: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    k: Tensor,
    v: Tensor,
    key_bias: Tensor,
    key_tiles: Tensor,
    *,
    num_heads: int,
    eps: float,
    scale: float,
    exact: bool = False,
) -> Tensor:
    """What `cross_attention` quantises, [1, L, C] bf16; arguments as there.

    Args:
        exact: an fp32 softmax over all keys at once, without a rounding of P.
    """
    keys = min(max(int(key_tiles), 1) * KEY_TILE, k.shape[1])
    q = rms_norm((y + bias).float(), norm_weight, eps)[0].unflatten(-1, (num_heads, HEAD_DIM))
    few_k = k[0, :keys].float().unflatten(-1, (num_heads, HEAD_DIM)).transpose(0, 1)
    few_v, few_bias = v[0, :, :keys].float(), key_bias[:keys]
    q = q.transpose(0, 1)
    if exact:
        logits = q @ few_k.transpose(1, 2) * scale + few_bias
        out = torch.softmax(logits, -1) @ few_v
    else:
        out = _attend(q, few_k, few_v, few_bias, scale)
    return out.transpose(0, 1).flatten(1).unsqueeze(0).to(torch.bfloat16)


def cross_attention(
    y: Tensor,
    bias: Tensor,
    norm_weight: Tensor,
    k: Tensor,
    v: Tensor,
    key_bias: Tensor,
    key_tiles: Tensor,
    *,
    num_heads: int,
    eps: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The node ``fastwan::CrossAttention``.

    The kernel differs in the order of fp32 sums and in ``ex2.approx``.

    Args:
        y: [1, L, C] bf16, raw output of the query GEMM; C = 128 num_heads.
        bias: [C] bf16.
        norm_weight: [C] bf16.
        k: [1, Lk, C] bf16, Lk a multiple of 64.
        v: [1, H, Lk, 128] bf16.
        key_bias: [Lk] fp32, added to the logits; minus infinity for a key that is none.
        key_tiles: [1] int32, tiles of 64 keys that are read.
        num_heads: H.
        eps: of the RMS norm across all channels.
        scale: of the logits.
    """
    out = attention_to_keys(
        y, bias, norm_weight, k, v, key_bias, key_tiles,
        num_heads=num_heads, eps=eps, scale=scale,
    )  # fmt: skip
    return quantize_activation(out)
