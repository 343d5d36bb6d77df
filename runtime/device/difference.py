"""How far two results of one computation lie apart, and how far rounding alone takes them.

Two quantisers that round differently, or a sum in another order before them, move a code or a scale
to its neighbour, and no further: a scale is the maximum of 16 values and one step of e4m3 is 6 to
12 % of it; a scale one step away moves a code by one step at most. A fault of layout, such as two
codes of a byte in the other order or scales of another row, moves most of what it touches by more,
in whole rows. So the worst row counts as well as all of them. Results in bf16 differ by a rounding
or two of 0.4 %.
"""

from __future__ import annotations

from typing import Annotated

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy
import numpy as np
from pydantic import Field

from fastwan.dtypes import PAIRED
from fastwan.runtime.model.executor import Array
from fastwan.schema import Measured, Record

STEPS, STEPS_IN_ROW = 1e-3, 0.07
"""Largest share of codes or scales more than a step apart, of all and in a row: a sum that cancels
moves one by more. In a row of 256 channels that is one scale and not two."""
RELATIVE, RELATIVE_IN_ROW = 0.01, 0.02
"""Largest relative L2 of other numbers, of all and in a row."""

_CHUNK = 1 << 22
"""Bytes that are compared at a time."""
_FLOATS = frozenset({"bfloat16", "float16", "float32"})
_ENDLESS = 1e9
"""Stands for a difference that is no number."""

Share = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Difference(Record):
    """Two results of one computation.

    Of codes and scales the share that is more than a step apart, of other numbers the L2 of the
    difference relative to what is expected.
    """

    name: str
    """Of the tensor."""
    differing: Measured[Share]
    """Share that is not the same."""
    whole: Measured[Share]
    worst_row: Measured[Share]
    rounding: bool
    """Whether rounding alone can have made it."""

    def __str__(self) -> str:
        return f"{self.name} {self.whole:.2%}, {self.worst_row:.2%} in a row"


def difference(name: str, found: Array, expected: Array, dtype: str) -> Difference:
    """Compare two tensors.

    Args:
        found: [rows, bytes of a row] uint8.
        expected: likewise.
        dtype: numpy name of what the bytes are.
    """
    amounts = _relative if dtype in _FLOATS else _steps
    rows = max(1, _CHUNK // found.shape[1])
    parts = [
        amounts(found[at : at + rows], expected[at : at + rows], dtype)
        for at in range(0, len(found), rows)
    ]
    apart, of, differing = (np.concatenate(each) for each in zip(*parts, strict=True))
    whole, by_row = _share(apart.sum(), of.sum()), _share(apart, of)
    limits = STEPS, STEPS_IN_ROW
    if dtype in _FLOATS:
        whole, by_row, limits = np.sqrt(whole), np.sqrt(by_row), (RELATIVE, RELATIVE_IN_ROW)
    worst = float(by_row.max())
    within = float(whole) <= limits[0] and worst <= limits[1]
    return Difference(
        name=name,
        differing=float(differing.mean()),
        whole=float(whole),
        worst_row=worst,
        rounding=within,
    )


def significant(codes: Array, scales: Array) -> Array:
    """Codes that mean something: 0 for those whose scale is 0, which may be anything.

    Args:
        codes: [rows, bytes], two a byte.
        scales: [rows, groups] of e4m3.
    """
    width = codes.shape[1] // scales.shape[1]
    return np.where(np.repeat(scales & 0x7F, width, axis=1), codes, 0).astype(np.uint8)


def _steps(found: Array, expected: Array, dtype: str) -> tuple[Array, Array, Array]:
    """By row the codes or scales that are more than a step apart, how many there are, and the share
    that differs at all."""
    a, b = (_places(each, dtype) for each in (found, expected))
    apart = np.abs(a - b)
    return (apart > 1).sum(-1), np.full(len(a), a.shape[-1]), (apart > 0).mean(-1)


def _places(raw: Array, dtype: str) -> Array:
    """Place of each number among all of its format; both zeros are one."""
    if dtype in PAIRED:
        raw = np.stack([raw & 15, raw >> 4], -1).reshape(len(raw), -1)
    bits = 3 if dtype in PAIRED else 7
    magnitude = (raw & ((1 << bits) - 1)).astype(np.int16)
    return np.where(raw >> bits, -magnitude, magnitude)


def _relative(found: Array, expected: Array, dtype: str) -> tuple[Array, Array, Array]:
    """By row the squared difference, the squared norm of what is expected, and the share that
    differs at all."""
    with np.errstate(invalid="ignore", over="ignore"):
        a, b = (each.view(np.dtype(dtype)).astype(np.float64) for each in (found, expected))
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        apart = np.where(same, 0.0, a - b)
        return (apart**2).sum(-1), (b**2).sum(-1), 1 - same.mean(-1)


def _share(apart: Array, of: Array) -> Array:
    """Quotient of two amounts: 0 where nothing differs, `_ENDLESS` where it is no number."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        share = np.where(np.equal(apart, 0), 0.0, np.divide(apart, of))
    return np.nan_to_num(share, nan=_ENDLESS, posinf=_ENDLESS).clip(0, _ENDLESS)
