"""NVFP4 in plain torch: e2m1 codes, e4m3 block scales, one fp32 scale a tensor.

The one definition that export, the attention reference and `verify` share. Values are grouped by
16 along the last axis; element ``2i`` is the low nibble of byte ``i``. Works on CPU and CUDA.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastwan.errors import BadInput

BLOCK = 16
E2M1_MAX = 6.0
E4M3_MAX = 448.0
E4M3_MIN_SUBNORMAL = 2.0**-9
_POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1_VALUES = (*_POSITIVE, *(-value for value in _POSITIVE))
"""Value of each code 0..15: bit 3 is the sign, bits 2..1 the exponent, bit 0 the mantissa."""

_CHUNK = 1 << 16  # elements that stay in a core's cache between the steps of a conversion
_SIX = 0x40C00000  # bits of fp32 6.0
_HALF_ULP = (1 << 21) - 1  # just below half of the last mantissa bit that e2m1 keeps
_BIAS = 252  # (bits of 1.0 >> 22) - code of 1.0


class PackedWeight(NamedTuple):
    """A linear's NVFP4 weight; ``value = e2m1 * block_scale * global_scale``.

    Attributes:
        packed: [N, K/2] uint8, low nibble = even column.
        block_scale: [N, K/16] float8_e4m3fn.
        global_scale: [] fp32.
    """

    packed: Tensor
    block_scale: Tensor
    global_scale: Tensor


def _e2m1_chunk(x: Tensor) -> Tensor:
    """Codes of a contiguous fp32 vector, by integer rounding of its bit pattern."""
    bits = x.view(torch.int32)
    magnitude = (bits & 0x7FFFFFFF).clamp_(max=_SIX)  # NaN has the largest bits, so it saturates
    subnormal = magnitude.view(torch.float32).mul(2.0).round_().to(torch.int32).clamp_(max=2)
    even = (magnitude >> 22).bitwise_and_(1)
    codes = magnitude.add_(_HALF_ULP).add_(even).bitwise_right_shift_(22).sub_(_BIAS)
    codes = torch.maximum(codes, subnormal)
    return codes.bitwise_or_((bits >> 28).bitwise_and_(8)).to(torch.uint8)


def round_to_e2m1(x: Tensor) -> Tensor:
    """e2m1 codes of `x`, as ``cvt.rn.satfinite.e2m1x2.f32`` makes them.

    Rounds to nearest, ties to the even code, saturates at 6 and keeps the sign: a negative value
    that rounds to zero, and -0, give code 8. NaN saturates with its sign bit.

    Args:
        x: any shape; converted to fp32, which is exact for bf16 and fp16.

    Returns:
        uint8 codes 0..15, shape of `x`.
    """
    flat = x.float().contiguous().view(-1)
    if flat.is_cuda or flat.numel() <= _CHUNK:
        return _e2m1_chunk(flat).view(x.shape)
    codes = torch.empty(flat.shape, dtype=torch.uint8, device=x.device)
    for begin in range(0, flat.numel(), _CHUNK):
        codes[begin : begin + _CHUNK] = _e2m1_chunk(flat[begin : begin + _CHUNK])
    return codes.view(x.shape)


def decode_e2m1(codes: Tensor) -> Tensor:
    """fp32 values of e2m1 codes (uint8, 0..15), same shape."""
    table = torch.tensor(E2M1_VALUES, dtype=torch.float32, device=codes.device)
    return table.index_select(0, codes.reshape(-1).to(torch.int32)).view(codes.shape)


def round_to_e2m1_values(x: Tensor) -> Tensor:
    """``decode_e2m1(round_to_e2m1(x))`` in one go, fp32; -0 for a negative that rounds to zero."""
    magnitude = x.float().abs().clamp_(max=E2M1_MAX)
    step = torch.where(magnitude < 2.0, 0.5, torch.where(magnitude < 4.0, 1.0, 2.0))
    return magnitude.div_(step).round_().mul_(step).copysign_(x)


def pack_nibbles(codes: Tensor) -> Tensor:
    """Two codes a byte: [..., K] uint8 -> [..., K/2] uint8, low nibble = even element.

    Raises:
        BadInput: K is odd.
    """
    if codes.shape[-1] % 2:
        raise BadInput(f"cannot pack an odd number of FP4 codes, {codes.shape[-1]}")
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """Inverse of `pack_nibbles`: [..., K/2] uint8 -> [..., K] uint8."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)


def round_to_e4m3(x: Tensor) -> Tensor:
    """`x` (fp32) as float8_e4m3fn, as ``cvt.rn.satfinite.e4m3x2.f32`` makes it.

    Rounds to nearest even with subnormals (2**-9 the smallest), saturates at 448; NaN stays NaN.
    """
    return x.float().clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def _blocks(x: Tensor) -> Tensor:
    if x.shape[-1] % BLOCK:
        raise BadInput(
            f"last axis of length {x.shape[-1]} is no multiple of the NVFP4 block of {BLOCK}"
        )
    return x.reshape(*x.shape[:-1], -1, BLOCK)


def weight_global_scale(weight: Tensor) -> Tensor:
    """Global scale of a weight, amax / (6 * 448), fp32 [].

    A weight without any value above 0 gets 1: ModelOpt makes it 0 there and then NaN of every
    block, and TensorRT refuses a scale that is not positive.
    """
    scale = weight.abs().amax().float() / (E2M1_MAX * E4M3_MAX)
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def quantize_weight(weight: Tensor, global_scale: Tensor | None = None) -> PackedWeight:
    """NVFP4 weight; the bytes are those of ModelOpt 0.47's ``NVFP4QTensor.quantize``.

    ``block_scale = e4m3(amax / (6 * global))``, held within 2**-9 .. 448 and 1 for a block of
    zeros; ``code = e2m1(w / (block_scale * global))``, each step rounded in fp32. A value that is
    zero or rounds to it from above has code 0, -0 included.

    Args:
        weight: [N, K] bf16, fp16 or fp32, K a multiple of 16.
        global_scale: [] fp32, positive; by default `weight_global_scale`. Give it when the rows
            of one weight are quantised in parts.

    Raises:
        BadInput: wrong shape, or a weight that is not finite.
    """
    if weight.dim() != 2:
        raise BadInput(f"a linear's weight has two axes, not {weight.dim()}")
    blocks = _blocks(weight)
    scale = weight_global_scale(weight) if global_scale is None else global_scale.float()
    if not bool(torch.isfinite(scale)):
        raise BadInput("weight has values that are not finite")
    # amax commutes with the exact conversion to fp32, so it may run in the weight's own dtype.
    block_scale = blocks.abs().amax(-1).float() / (E2M1_MAX * scale)
    block_scale = block_scale.masked_fill_(block_scale == 0, 1.0)
    rounded = block_scale.clamp_(E4M3_MIN_SUBNORMAL, E4M3_MAX).to(torch.float8_e4m3fn)
    divisor = (rounded.float() * scale).unsqueeze(-1)
    packed = torch.empty(
        (weight.shape[0], weight.shape[1] // 2), dtype=torch.uint8, device=weight.device
    )
    step = max(1, (1 << 20) // weight.shape[1])
    for begin in range(0, weight.shape[0], step):
        rows = slice(begin, begin + step)
        scaled = (blocks[rows].float() / divisor[rows]).flatten(-2)
        packed[rows] = pack_nibbles(round_to_e2m1(scaled.add_(0.0)))  # -0 + 0 is +0
    return PackedWeight(packed, rounded, scale)


def dequantize_weight(weight: PackedWeight) -> Tensor:
    """fp32 [N, K] values of a packed weight."""
    values = _blocks(decode_e2m1(unpack_nibbles(weight.packed)))
    scale = weight.block_scale.float() * weight.global_scale
    return (values * scale.unsqueeze(-1)).flatten(-2)


def _activation_blocks(x: Tensor, global_scale: float) -> tuple[Tensor, Tensor]:
    """Activation divided by its rounded scale [..., G, 16] fp32, and the scales [..., G]."""
    blocks = _blocks(x).float()
    amax = blocks.abs().amax(-1)
    block_scale = round_to_e4m3(amax / E2M1_MAX / global_scale)
    divisor = (block_scale.float() * global_scale).unsqueeze(-1)
    scaled = torch.where(divisor > 0, blocks / divisor, torch.zeros(()).to(blocks))
    return scaled, block_scale


def quantize_activation(x: Tensor, global_scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """NVFP4 activation with a static global scale (1.0 in FastWan-QAD).

    ``block_scale = e4m3(amax / 6 / global)``; ``code = e2m1(x / (block_scale * global))``, divided
    by the rounded scale; a block whose scale rounds to zero has only zeros.

    Args:
        x: [..., K], K a multiple of 16.

    Returns:
        packed uint8 [..., K/2] and block_scale float8_e4m3fn [..., K/16].
    """
    scaled, block_scale = _activation_blocks(x, global_scale)
    return pack_nibbles(round_to_e2m1(scaled).flatten(-2)), block_scale


def fake_quantize_activation(x: Tensor, global_scale: float = 1.0) -> Tensor:
    """What a GEMM sees of `x` after `quantize_activation`: fp32 [..., K]."""
    scaled, block_scale = _activation_blocks(x, global_scale)
    scale = (block_scale.float() * global_scale).unsqueeze(-1)
    return (round_to_e2m1_values(scaled) * scale).flatten(-2)
