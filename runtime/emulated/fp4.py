"""NVFP4 operands in bf16: quantised values times their block scale are exact in it.

An e2m1 value has two significant bits and an e4m3 scale four, so a product has at most six; bf16
holds eight, and fp32 accumulation holds the sums as an FP4 GEMM of Blackwell does. What is left to
the order of the sums is the same that two kernels of one GPU differ by.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from fastwan.plugins import nvfp4

_ROWS = 1 << 12
"""Rows that are quantised at a time: it bounds the fp32 temporaries."""


@dataclass(frozen=True)
class BlockScale:
    """Scales of blocks of 16 and of the whole tensor, which a GEMM applies to its sums.

    Attributes:
        blocks: [..., K/16] fp32, values of e4m3.
        scale: of the whole tensor.
    """

    blocks: Tensor
    scale: float


@dataclass(frozen=True)
class Codes:
    """An activation that was quantised, its codes already times their block scales.

    Attributes:
        products: [..., K] bf16.
        blocks: the block scales, [..., K/16] fp32.
    """

    products: Tensor
    blocks: Tensor

    def packed(self) -> Tensor:
        """The codes, [..., K/2] uint8, two a byte."""
        rows = self.products.reshape(-1, self.products.shape[-1])
        scales = self.blocks.reshape(len(rows), -1, 1)
        packed = torch.empty((len(rows), rows.shape[1] // 2), dtype=torch.uint8, device=rows.device)
        for begin in range(0, len(rows), _ROWS):
            part = slice(begin, begin + _ROWS)
            grouped = rows[part].float().view(*scales[part].shape[:2], -1)
            values = torch.where(scales[part] > 0, grouped / scales[part], grouped)
            packed[part] = nvfp4.pack_nibbles(nvfp4.round_to_e2m1(values).flatten(1))
        return packed.view(*self.products.shape[:-1], -1)


@dataclass(frozen=True)
class Operand:
    """What a GEMM multiplies: its value is ``products * scale``.

    Attributes:
        products: [..., K] bf16, e2m1 codes times e4m3 block scales, exact.
        scale: of the whole tensor; a GEMM applies it in fp32 to its sums.
    """

    products: Tensor
    scale: float

    @property
    def shape(self) -> torch.Size:
        return self.products.shape

    def values(self) -> Tensor:
        """fp32 values, as `DequantizeLinear` defines them."""
        return self.products.float() * self.scale


@cache
def pairs(device: torch.device) -> Tensor:
    """The two e2m1 values of each byte, [256] int32: two bf16, the low nibble's first.

    Made once a device; ask for it before a capture, which takes no constants from host memory.
    """
    every = torch.arange(256, dtype=torch.uint8)[:, None]
    values = nvfp4.decode_e2m1(nvfp4.unpack_nibbles(every)).to(torch.bfloat16)
    return values.view(torch.int32).reshape(-1).to(device)


def products(codes: Tensor, blocks: Tensor) -> Tensor:
    """Codes of a weight or an activation times their block scales, [.., K] bf16.

    Args:
        codes: [.., K/2] uint8, two codes a byte.
        blocks: [.., K/16] fp32.
    """
    rows, table = codes.reshape(-1, codes.shape[-1]), pairs(codes.device)
    scales = blocks.reshape(rows.shape[0], -1, 1)
    made = torch.empty((*scales.shape[:2], nvfp4.BLOCK), dtype=torch.bfloat16, device=codes.device)
    for begin in range(0, rows.shape[0], _ROWS):
        part = slice(begin, begin + _ROWS)
        found = table.index_select(0, rows[part].reshape(-1).to(torch.int32))
        values = found.view(torch.bfloat16).view(made[part].shape)
        torch.mul(values, scales[part].to(torch.bfloat16), out=made[part])
    return made.view(*codes.shape[:-1], -1)


def quantize(x: Tensor, scale: float) -> tuple[Codes, Tensor]:
    """An activation as `plugins.nvfp4.quantize_activation` quantises it.

    Args:
        x: [..., K], K a multiple of 16.
        scale: of the whole tensor.

    Returns:
        its codes times their block scales, and the block scales, [..., K/16] fp32.
    """
    rows = x.reshape(-1, x.shape[-1])
    products = torch.empty(rows.shape, dtype=torch.bfloat16, device=x.device)
    groups = rows.shape[1] // nvfp4.BLOCK
    blocks = torch.empty((rows.shape[0], groups), dtype=torch.float32, device=x.device)
    for begin in range(0, rows.shape[0], _ROWS):
        part = slice(begin, begin + _ROWS)
        grouped = rows[part].float().view(-1, groups, nvfp4.BLOCK)
        amax = grouped.abs().amax(-1)
        rounded = nvfp4.round_to_e4m3(amax / nvfp4.E2M1_MAX / scale).float()
        blocks[part] = rounded
        divisor = (rounded * scale)[..., None]
        scaled = torch.where(divisor > 0, grouped / divisor, torch.zeros((), device=x.device))
        values = nvfp4.round_to_e2m1_values(scaled).mul_(rounded[..., None])
        products[part] = values.view(-1, rows.shape[1])
    scales = blocks.view(*x.shape[:-1], groups)
    return Codes(products.view(x.shape), scales), scales


def multiply(left: Operand, right: Operand) -> Tensor:
    """bf16 product of two operands with fp32 sums, rounded once.

    Args:
        left: [..., M, K].
        right: [K, N].
    """
    rows, scale = left.products.reshape(-1, left.shape[-1]), left.scale * right.scale
    if rows.is_cuda:
        out = torch.empty((rows.shape[0], right.shape[1]), dtype=rows.dtype, device=rows.device)
        torch.addmm(out, rows, right.products, beta=0, alpha=scale, out=out)
    else:
        out = ((rows.float() @ right.products.float()) * scale).to(torch.bfloat16)
    return out.view(*left.shape[:-1], right.shape[1])
