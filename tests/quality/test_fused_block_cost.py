"""The block with every fusion, by hand: its page, and what the tool says of its regions."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastwan.plugins.loader import checkout_root
from fastwan.plugins.regions.base import RegionOp
from fastwan.plugins.regions.cross_attention import CrossAttention, CrossAttributes
from fastwan.plugins.regions.gelu_quantize import GeluQuantize
from fastwan.plugins.regions.quantize import Quantize
from fastwan.plugins.regions.residual_norm_quantize import NormAttributes, ResidualNormQuantize
from fastwan.plugins.regions.sage_attention3 import SageAttention3, SageAttributes
from fastwan.quality.cost import region_op_cost
from fastwan.quality.gpus import GPUS
from testkit.hand_cost import (
    ATTENTION,
    CROSS,
    FUSED_BLOCK,
    GATED_NORM,
    GELU,
    NORM,
    QUANTISE,
    Hand,
    formula_bytes,
    section,
    shown,
    total_row,
)

GPU = GPUS["rtx5090"]
ROWS, CHANNELS = 32_768, 1_536
NORM_ATTRIBUTES = NormAttributes(1e-6, add_one=True)
REGIONS: list[tuple[RegionOp, list[Hand]]] = [
    (Quantize(ROWS, CHANNELS), [QUANTISE]),
    (ResidualNormQuantize(ROWS, CHANNELS, NORM_ATTRIBUTES, gated=True), [GATED_NORM]),
    (ResidualNormQuantize(ROWS, CHANNELS, NORM_ATTRIBUTES, gated=False), [NORM]),
    (GeluQuantize(ROWS, 8_960), [GELU]),
    (CrossAttention(ROWS, CHANNELS, 512, CrossAttributes(12, 1e-6, 0.088)), [CROSS]),
    (SageAttention3(1, ROWS, SageAttributes(12, 32_760)), ATTENTION),
]


@pytest.fixture(scope="module")
def pages() -> Path:
    root = checkout_root()
    if root is None:
        pytest.skip("not a source checkout")
    return Path(root, "docs")


@pytest.mark.parametrize(("op", "hands"), REGIONS, ids=lambda each: getattr(each, "op", ""))
def test_every_region_is_priced_as_by_hand(op: RegionOp, hands: list[Hand]) -> None:
    cost = region_op_cost(op, GPU)
    assert cost.kernels == len(hands)
    assert cost.bytes_moved == sum(hand.bytes for hand in hands)
    assert cost.flops == sum(hand.operations for hand in hands)
    assert cost.seconds == pytest.approx(sum(hand.microseconds for hand in hands) * 1e-6)
    assert all(hand in FUSED_BLOCK for hand in hands)


def test_the_page_shows_every_kernel_and_their_sum(pages: Path) -> None:
    page = (pages / "step-cost.md").read_text()
    *rows, last = section(page, "One block with every fusion")
    assert [row[-3:] for row in rows] == [shown(hand) for hand in FUSED_BLOCK]
    assert [formula_bytes(row[1]) for row in rows] == [hand.bytes for hand in FUSED_BLOCK]
    assert last[-3:] == total_row(FUSED_BLOCK)


def test_the_sum_is_what_the_builders_records_gave(pages: Path) -> None:
    # Of a real build, as the page of fusions has it; cross-attention counts there.
    memory = [hand for hand in FUSED_BLOCK if not hand.operations or hand is CROSS]
    moved = sum(hand.bytes for hand in memory) / 1e6
    (row,) = (
        r for r in (pages / "fusion.md").read_text().splitlines() if r.startswith("| `all` | 1")
    )
    _, _, kernels, memory_only, step, _ = (cell.strip() for cell in row.strip("|").split("|"))
    assert kernels == str(len(FUSED_BLOCK))
    assert memory_only == f"{moved:,.0f}"
    assert moved <= 2_500
    # 30 blocks are the step but for what is before the first attention and behind the last.
    blocks = 30 * sum(hand.microseconds for hand in FUSED_BLOCK) / 1e3
    assert blocks == pytest.approx(float(step), abs=1.0)
