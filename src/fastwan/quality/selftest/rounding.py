"""How an activation was rounded to NVFP4, against `plugins.nvfp4`, in units in the last place.

A GPU may divide by way of a reciprocal, which moves a quotient by a few units in the last place of
fp32. That changes a code or a scale only where the quotient lies on a tie. So a block is right if
some rounding to nearest of quotients moved by at most `SLACK` explains all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastwan.plugins import nvfp4
from fastwan.quality.verify.quantizer import edge_cases

SLACK = 2.0**-21
"""Relative; four units in the last place of fp32."""
_ULPS = 8
"""Scales this far from the right one are tried for a block that is not explained."""


def values(rows: int, columns: int) -> Tensor:
    """[rows, columns] bf16: every edge case of the quantiser, and random blocks behind them."""
    generator = np.random.default_rng(4)
    blocks = generator.standard_normal((rows * columns // nvfp4.BLOCK, nvfp4.BLOCK), np.float32)
    exponents = generator.integers(-12, 10, (blocks.shape[0], 1))
    x = np.ldexp(blocks, exponents).astype(np.float32).reshape(-1)
    edges = edge_cases()[: x.size]
    x[: edges.size] = edges
    return torch.from_numpy(x.reshape(rows, columns)).bfloat16()


@dataclass(frozen=True)
class Rounding:
    """Counts over all blocks of 16.

    Attributes:
        blocks: compared.
        values: compared.
        equal: values that are those of the reference; the sign of a zero does not count.
        scale_ties: blocks whose scale lies on a tie and was rounded to the other side.
        code_ties: values that lie on a tie and were rounded to the other side, under a scale that
            is the reference's.
        wrong: blocks that no rounding to nearest explains.
        scale_ulps: largest distance of a scale of such a block from the reference's, in units in
            the last place of e4m3; `None` where no near scale explains it.
        code_steps: largest distance of a value of such a block, in steps of e2m1.
    """

    blocks: int
    values: int
    equal: int
    scale_ties: int
    code_ties: int
    wrong: int
    scale_ulps: int | None
    code_steps: float


def judge(x: Tensor, seen: Tensor) -> Rounding:
    """Compare an activation as the GPU quantised it with the reference.

    Args:
        x: [M, K] bf16.
        seen: [M, K] fp32, dequantised.
    """
    given = x.float().reshape(-1, nvfp4.BLOCK)
    found = seen.reshape(-1, nvfp4.BLOCK) + 0.0  # no minus zero
    expected = nvfp4.fake_quantize_activation(x).reshape(-1, nvfp4.BLOCK) + 0.0
    quotient = given.abs().amax(-1) / nvfp4.E2M1_MAX
    scale = nvfp4.round_to_e4m3(quotient).float()
    same = found == expected
    exact = same.all(-1)
    tied = _explained(given, scale, found) & ~exact
    other = torch.zeros_like(exact)
    for moved in (1 - SLACK, 1 + SLACK):
        neighbour = nvfp4.round_to_e4m3(quotient * moved).float()
        other |= (neighbour != scale) & _explained(given, neighbour, found)
    other &= ~exact & ~tied
    wrong = ~(exact | tied | other)
    return Rounding(
        blocks=len(given),
        values=same.numel(),
        equal=int(same.sum()),
        scale_ties=int(other.sum()),
        code_ties=int((~same)[tied].sum()),
        wrong=int(wrong.sum()),
        scale_ulps=_scale_ulps(given[wrong], scale[wrong], found[wrong]),
        code_steps=_steps(scale[wrong], found[wrong], expected[wrong]),
    )


def _explained(given: Tensor, scale: Tensor, found: Tensor, slack: float = SLACK) -> Tensor:
    """Blocks all of whose values are roundings to nearest under a scale."""
    divisor = scale.unsqueeze(-1)
    quotient = torch.where(divisor > 0, given / divisor, torch.zeros(()))
    fits = torch.zeros_like(found, dtype=torch.bool)
    for moved in (1 - slack, 1.0, 1 + slack):
        fits |= nvfp4.round_to_e2m1_values(quotient * moved) * divisor == found
    return fits.all(-1)


def _scale_ulps(given: Tensor, scale: Tensor, found: Tensor) -> int | None:
    """Least distance in e4m3 of a scale that explains each block; the largest of them."""
    if not len(given):
        return 0
    bits = scale.to(torch.float8_e4m3fn).view(torch.uint8).to(torch.int16)
    least = torch.full(bits.shape, _ULPS + 1, dtype=torch.int16)
    for ulps in range(-_ULPS, _ULPS + 1):
        tried = (bits + ulps).clamp(0, 0x7E).to(torch.uint8).view(torch.float8_e4m3fn).float()
        distance = torch.full_like(least, abs(ulps))
        least = torch.where(_explained(given, tried, found), torch.minimum(least, distance), least)
    largest = int(least.max())
    return None if largest > _ULPS else largest


def _steps(scale: Tensor, found: Tensor, expected: Tensor) -> float:
    """Largest difference in steps that e2m1 has at the expected value."""
    if not len(found):
        return 0.0
    divisor = torch.where(scale > 0, scale, torch.ones(())).unsqueeze(-1)
    magnitude = (expected / divisor).abs()
    step = torch.where(magnitude < 2, 0.5, torch.where(magnitude < 4, 1.0, 2.0))
    steps = ((found - expected).abs() / divisor / step).nan_to_num(nan=torch.inf)
    return float(steps.max())
