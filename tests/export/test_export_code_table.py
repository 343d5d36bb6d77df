"""Codes gathered from a table against codes converted one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastwan.export import quantize
from fastwan.export.code_table import CodeTable, code_table
from fastwan.plugins.nvfp4 import (
    BLOCK,
    E2M1_MAX,
    PackedWeight,
    pack_nibbles,
    quantize_weight,
    round_to_e2m1,
)

SHAPE = (1024, 512)


def _normal(scale: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(SHAPE, generator=generator) * scale).bfloat16()


def _signed_zeros() -> torch.Tensor:
    weight = _normal(0.02)
    weight[::3, ::5] = -0.0
    weight[1::3, ::7] = 0.0
    weight[17] = -0.0
    return weight


def _far_apart() -> torch.Tensor:
    """Blocks of many block scales, and values far below the table's smallest magnitude."""
    weight = _normal(0.01)
    weight[:, 16:32] *= 2.0 ** torch.linspace(-8, 1, SHAPE[0])[:, None]
    weight[:, 35] *= 1e-30
    return weight


def _ties() -> torch.Tensor:
    """Multiples of 1/4 in blocks whose largest value is 6: ties under a block scale of 1."""
    steps = torch.arange(-24, 25) / 4
    weight = steps.repeat(SHAPE[0] * SHAPE[1] // len(steps) + 1)[: SHAPE[0] * SHAPE[1]]
    weight = weight.reshape(-1, BLOCK).clone()
    weight[:, 0] = 6
    weight[0, 0] = 2688
    return (weight.reshape(SHAPE) * 2.0**-10).bfloat16()


WEIGHTS = {
    "normal": _normal(0.02),
    "small": _normal(1e-6),
    "signed zeros": _signed_zeros(),
    "far apart": _far_apart(),
    "ties": _ties(),
}


def _raw(packed: PackedWeight) -> list[bytes]:
    return [bytes(tensor.reshape(-1).view(torch.uint8).numpy()) for tensor in packed]


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_gather_gives_what_modelopt_gives_element_by_element(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("modelopt", reason="nvidia-modelopt is not installed")
    tables: list[CodeTable | None] = []

    def spy(*args: Any) -> CodeTable | None:
        tables.append(code_table(*args))
        return tables[-1]

    weight = WEIGHTS[name]
    monkeypatch.setattr(quantize, "code_table", spy)
    gathered, _ = quantize.quantize_linear(weight.clone())
    monkeypatch.setattr(quantize, "code_table", lambda *args: None)
    converted, _ = quantize.quantize_linear(weight.clone())
    assert len(tables) == 1
    assert tables[0] is not None
    assert tables[0].codes.numel() < weight.numel()
    assert _raw(gathered) == _raw(converted) == _raw(quantize_weight(weight))


def _convert(global_scale: torch.Tensor, seen: list[int]) -> Any:
    def convert(values: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        seen.append(values.numel())
        divisor = (factors.float() * global_scale).repeat_interleave(BLOCK, dim=1)
        return pack_nibbles(round_to_e2m1(values.float() / divisor))

    return convert


def _scales(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    packed = quantize_weight(weight)
    return packed.block_scale, packed.global_scale


@pytest.mark.parametrize("name", WEIGHTS)
def test_each_pair_is_converted_once_and_every_code_is_reached(name: str) -> None:
    weight = WEIGHTS[name]
    scales, total = _scales(weight)
    seen: list[int] = []
    table = code_table(weight, scales, total, _convert(total, seen))
    assert table is not None
    assert seen == [table.codes.numel()]
    assert seen[0] == len(scales.view(torch.uint8).unique()) * 2 * table.magnitudes
    # The smallest magnitude stands for all below it, so it has to have the code of zero.
    divisor = float(scales.float().min() * total)
    smallest = torch.tensor(table.low, dtype=torch.int16).view(torch.bfloat16)
    assert 0 < float(smallest) / divisor < 0.25
    largest = table.low + table.magnitudes - 1
    assert largest >= int((weight.view(torch.int16) & 0x7FFF).max())


def test_a_weight_without_an_exact_or_a_smaller_table_has_none() -> None:
    def table(weight: torch.Tensor) -> CodeTable | None:
        scales, total = _scales(weight)
        return code_table(weight, scales, total, _convert(total, []))

    weight = _normal(0.02)
    assert table(weight) is not None
    assert table(weight.float()) is None  # other values than bf16 has
    assert table(weight[:16]) is None  # more pairs than elements
    # Divided by more than 1, the smallest numbers of bf16 may round to a zero without a sign.
    large = weight / weight.abs().max() * E2M1_MAX
    assert table(large) is not None
    assert table(large * 2) is None
