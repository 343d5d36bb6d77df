"""FP4 codes of a bf16 weight, converted once for each pair of values that occurs.

A code is a function of a weight's value and of its block's scale alone (the global scale is the
tensor's). bf16 has few values in the range that matters and e4m3 few scales, so a weight of
millions of elements holds some ten thousand different pairs. The quantiser converts those, and a
gather spreads what it made of them: the same function and the same bytes, in a quarter of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fastwan.plugins.nvfp4 import BLOCK, unpack_nibbles

Convert = Callable[[Tensor, Tensor], Tensor]
"""(values [N, K], block scales [N, K/16] e4m3) -> packed codes [N, K/2]."""

_CHUNK = 1 << 18  # elements that stay in a core's cache between the steps
_MAGNITUDE = 0x7FFF  # a bf16 pattern without its sign
_ZERO_BELOW = 0.125  # half of the scaled magnitude below which e2m1 rounds to zero


def row_slices(weight: Tensor) -> Iterator[slice]:
    """Rows of a weight [N, K], as many at a time as a core's cache holds."""
    step = max(1, _CHUNK // weight.shape[1])
    for begin in range(0, weight.shape[0], step):
        yield slice(begin, begin + step)


@dataclass(frozen=True)
class CodeTable:
    """Codes by block scale, sign and magnitude.

    Attributes:
        codes: [scales * 2 * magnitudes] uint8; one code each.
        row: [256] int32; where the codes of a scale begin, by the scale's e4m3 pattern.
        low: bf16 pattern of the smallest magnitude in it; smaller ones have its codes.
        magnitudes: how many there are.
    """

    codes: Tensor
    row: Tensor
    low: int
    magnitudes: int

    def pack(self, weight: Tensor, block_scale: Tensor) -> Tensor:
        """Packed codes [N, K/2] of a weight [N, K] bf16 whose pairs are in the table."""
        packed = torch.empty((weight.shape[0], weight.shape[1] // 2), dtype=torch.uint8)
        for rows in row_slices(weight):
            bits = weight[rows].contiguous().view(torch.int16)
            # ModelOpt takes the sign from a comparison with 0, so -0 has the code of +0.
            bits = bits.masked_fill(bits == torch.iinfo(torch.int16).min, 0)
            index = (bits & _MAGNITUDE).clamp_(min=self.low).to(torch.int32).sub_(self.low)
            index += (bits >> 15).to(torch.int32) & self.magnitudes
            scale = block_scale[rows].view(torch.uint8).reshape(-1).to(torch.int32)
            blocks = index.view(-1, BLOCK)
            blocks += self.row.index_select(0, scale).unsqueeze(-1)
            codes = self.codes.index_select(0, index.view(-1))
            # Two neighbouring codes are one 16-bit number.
            pairs = codes.view(torch.int16)
            packed[rows] = (pairs | pairs >> 4).to(torch.uint8).view(index.shape[0], -1)
        return packed


def code_table(
    weight: Tensor, block_scale: Tensor, global_scale: Tensor, convert: Convert
) -> CodeTable | None:
    """The table of a weight, or None where it would not pay or might not be exact.

    Args:
        weight: [N, K] bf16, finite.
        block_scale: [N, K/16] float8_e4m3fn, positive.
        global_scale: [] fp32, positive.
        convert: the quantiser; its code must depend on nothing but value, block scale and global
            scale.
    """
    if weight.dtype != torch.bfloat16:
        return None
    counts = block_scale.view(torch.uint8).reshape(-1).bincount(minlength=256)
    present = counts.nonzero().reshape(-1).to(torch.uint8)
    scales = present.view(torch.float8_e4m3fn)
    divisors = scales.float() * global_scale
    if float(divisors.max()) > 1:
        return None  # a division that shrinks may round a value to zero, which has no sign
    high = int(weight.view(torch.int16).bitwise_and(_MAGNITUDE).max())
    low = int((divisors.min() * _ZERO_BELOW).bfloat16().view(torch.int16))
    if not 0 < low <= high:
        return None
    magnitudes = -(-(high - low + 1) // BLOCK) * BLOCK
    if len(present) * 2 * magnitudes > weight.numel():
        return None
    patterns = torch.arange(low, low + magnitudes).clamp(max=high).to(torch.int16)
    values = patterns.view(torch.bfloat16)
    both = torch.cat([values, -values]).expand(len(present), -1)
    factors = present.unsqueeze(-1).expand(-1, both.shape[1] // BLOCK)
    packed = convert(both.contiguous(), factors.contiguous().view(torch.float8_e4m3fn))
    row = torch.zeros(256, dtype=torch.int32)
    row[present.long()] = torch.arange(len(present), dtype=torch.int32) * (2 * magnitudes)
    return CodeTable(unpack_nibbles(packed).reshape(-1).contiguous(), row, low, magnitudes)
