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
from fastwan.plugins.reference import _warp_sum as warp_sum

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
    channels = x.shape[-1]
    centred = x - warp_sum(x) / channels
    variance = warp_sum(centred * centred) / channels
    # fp64 between two fp32 values makes the reciprocal root correctly rounded, as __frsqrt_rn is.
    return centred * (variance + eps).double().rsqrt().float()


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
    added = y + bias
    if gate is not None:
        added = (added.float() * gate).to(torch.bfloat16)
    hidden = hidden + added
    factor = 1 + scale if add_one else scale
    modulated = (layer_norm(hidden.float(), eps) * factor + shift).to(torch.bfloat16)
    return hidden, *quantize_activation(modulated)
