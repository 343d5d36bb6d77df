"""Operands of the FP4 attention kernel: quantised, packed and laid out as its MMA loads them.

Bit-exact definition of what the CUDA prologue writes; see `reference` for the whole node.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fastwan.errors import BadInput
from fastwan.plugins.nvfp4 import (
    BLOCK,
    E2M1_MAX,
    pack_nibbles,
    round_to_e2m1,
    round_to_e2m1_values,
    round_to_e4m3,
)

HEAD_DIM = 128
TILE = 128
"""Queries and keys of one attention tile; every operand is padded to a multiple of it."""


class Operands(NamedTuple):
    """Packed operands of the attention kernel, all uint8; Lp is L padded to 128.

    Attributes:
        q: [B, H, Lp, 64] e2m1 pairs along the head dimension, low nibble first.
        q_scale: [B, H, Lp, 8] e4m3 bytes, swizzled within a head.
        k: like `q`, tokens permuted inside each 32.
        k_scale: like `q_scale`, for the stored order of the tokens.
        v: [B, H, 128, Lp/2] e2m1 pairs along the tokens.
        v_scale: [B, H, 128, Lp/16] e4m3 bytes, swizzled within a head.
    """

    q: Tensor
    q_scale: Tensor
    k: Tensor
    k_scale: Tensor
    v: Tensor
    v_scale: Tensor


def padded_length(length: int) -> int:
    """`length` rounded up to whole tiles."""
    return -(-length // TILE) * TILE


def reciprocal(scale: Tensor, ulps: int) -> Tensor:
    """``1 / scale`` moved by `ulps`, 0 where the scale is 0."""
    inverse = torch.where(scale == 0, torch.zeros_like(scale), 1.0 / scale)
    if ulps:
        moved = (inverse.view(torch.int32) + ulps).view(torch.float32)
        inverse = torch.where(scale == 0, inverse, moved)
    return inverse


def quantize_groups(x: Tensor, reciprocal_ulps: int) -> tuple[Tensor, Tensor]:
    """Groups of 16 along the last axis: the values in units of their scale, and e4m3 scales."""
    groups = x.reshape(*x.shape[:-1], -1, BLOCK).float()
    scale = round_to_e4m3(groups.abs().amax(-1) / E2M1_MAX)
    return groups * reciprocal(scale.float(), reciprocal_ulps).unsqueeze(-1), scale


def fake_quantize_groups(x: Tensor, reciprocal_ulps: int) -> Tensor:
    groups, scale = quantize_groups(x, reciprocal_ulps)
    return (round_to_e2m1_values(groups) * scale.float().unsqueeze(-1)).flatten(-2)


def heads_first(x: Tensor) -> Tensor:
    """[B, L, H, D] -> [B, H, Lp, D], zeros behind the last token."""
    if x.dim() != 4 or x.shape[-1] != HEAD_DIM:
        raise BadInput(f"expected [B, L, H, {HEAD_DIM}], got {list(x.shape)}")
    x = x.transpose(1, 2)
    return functional.pad(x, (0, 0, 0, padded_length(x.shape[2]) - x.shape[2]))


def key_permutation(length: int) -> Tensor:
    """Token that is stored at each row of K, [length] int64; a multiple of 32 rows.

    It makes the 8 logits that one thread gets from an MMA belong to 8 neighbouring tokens, so a
    pair of threads holds the 16 tokens that share a scale of P and of V.
    """
    stored = torch.arange(length)
    within = stored % 32
    token = (within // 8) * 2 + ((within % 8) // 2) * 8 + within % 2
    return stored - within + token


def swizzle_scales(scale: Tensor) -> Tensor:
    """Scales [.., R, G] in the order the MMA loads them; R a multiple of 64, G of 4.

    Byte ``(r/64)*64*G + (g/4)*256 + (r%16)*16 + ((r/16)%4)*4 + g%4`` of a head is scale (r, g).
    """
    *lead, rows, groups = scale.shape
    tiles = scale.reshape(*lead, rows // 64, 4, 16, groups // 4, 4)
    return tiles.movedim((-5, -2, -3, -4, -1), (-5, -4, -3, -2, -1)).reshape(scale.shape)


def pack_operands(q: Tensor, k: Tensor, v: Tensor, *, reciprocal_ulps: int = 0) -> Operands:
    """Bytes that the attention kernel is given; see `Operands`.

    ``scale = e4m3(amax / 6)``, ``code = e2m1(x * (1 / scale))``, 0 where the scale is 0.

    Args:
        q: [B, L, H, 128] bf16.
        k: [B, L, H, 128] bf16.
        v: [B, L, H, 128] bf16.
        reciprocal_ulps: see `reference`.
    """
    packed = []
    permutation = key_permutation(padded_length(k.shape[1])).to(k.device)
    rows = (heads_first(q), heads_first(k)[:, :, permutation], heads_first(v).transpose(2, 3))
    for x in rows:
        groups, scale = quantize_groups(x, reciprocal_ulps)
        packed.append(pack_nibbles(round_to_e2m1(groups).flatten(-2)))
        packed.append(swizzle_scales(scale.view(torch.uint8)))
    return Operands(*packed)
