"""How far what a region wrote is from its reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastwan.plugins.nvfp4 import BLOCK, decode_e2m1, unpack_nibbles
from fastwan.plugins.regions.base import RegionOp

_AT_ONCE = 1 << 24
"""Values that are compared at a time: it bounds the fp64 temporaries."""


@dataclass(frozen=True)
class RegionFigure:
    """A region's outputs against its reference, for the inputs that it was given.

    Attributes:
        op: type of its node.
        difference: see `difference`; infinite where a number is not finite.
        equal: share of equal elements among the true rows.
        padding_is_zero: of the rows behind them.
    """

    op: str
    difference: float
    equal: float
    padding_is_zero: bool


def compare_region(
    region: RegionOp, given: Sequence[Tensor], got: Sequence[Tensor]
) -> RegionFigure:
    """A region's outputs against the reference of its kind.

    Args:
        given: the inputs, in the order of the region's.
        got: the outputs, likewise.
    """
    rows = region.true_rows
    expected = [made[:, :rows] for made in region.reference(*given)]
    true = [made[:, :rows] for made in got]
    pairs = _comparable(expected, true)
    found = difference(region, true, expected)
    return RegionFigure(
        op=region.op,
        difference=found if found == found else float("inf"),
        equal=sum(int((a == b).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs),
        padding_is_zero=rows is None or not any(bool(made[:, rows:].any()) for made in got),
    )


def difference(region: RegionOp, found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """How far outputs are from the reference: to be held to the region's `limit`.

    Returns:
        the relative L2 difference of what they stand for, FP4 operands dequantised; of a kind
        whose limit is 0 the number of bytes that differ.
    """
    if not region.limit:
        return sum(
            int((a.contiguous().view(torch.uint8) != b.contiguous().view(torch.uint8)).sum())
            for a, b in zip(found, expected, strict=True)
        )
    apart, size = 0.0, 0.0
    for a, b in zip(_values(found), _values(expected), strict=True):
        for x, y in zip(a.reshape(-1).split(_AT_ONCE), b.reshape(-1).split(_AT_ONCE), strict=True):
            apart += float((x.double() - y.double()).square().sum())
            size += float(y.double().square().sum())
    return (apart / size) ** 0.5 if size else float("inf")


def dequantized(codes: Tensor, scales: Tensor) -> Tensor:
    """Values of an FP4 operand with global scale 1, [.., C] fp32.

    Args:
        codes: [.., C/2] uint8.
        scales: [.., C/16] float8_e4m3fn.
    """
    blocks = decode_e2m1(unpack_nibbles(codes)).unflatten(-1, (-1, BLOCK))
    values: Tensor = blocks * scales.float().unsqueeze(-1)
    return values.flatten(-2)


def _values(outputs: Sequence[Tensor]) -> list[Tensor]:
    """What outputs stand for: codes and the scales behind them are one operand."""
    values: list[Tensor] = []
    left = iter(outputs)
    for each in left:
        values.append(dequantized(each, next(left)) if each.dtype == torch.uint8 else each)
    return values


def _comparable(left: Sequence[Tensor], right: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Pairs of tensors whose elements torch can compare: e4m3 as bytes."""
    e4m3 = torch.float8_e4m3fn
    return [
        (a.view(torch.uint8), b.view(torch.uint8)) if a.dtype == e4m3 else (a, b)
        for a, b in zip(left, right, strict=True)
    ]
