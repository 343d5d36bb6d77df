"""The block of full size by hand, and the tables of ``docs/step-cost.md`` that show it."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

LATENTS = 16 * 21 * 60 * 104  # values of the latents
# Bytes of tensors, and operations; written out so that no code of the tool is used.
X = 100_663_296  # 32,768 rows of 1,536 channels in bf16
FFN = 587_202_560  # 32,768 rows of 8,960 channels in bf16
QKV = 301_989_888  # 32,768 rows of 3 x 1,536 channels in bf16
SCALES = 3_145_728  # a byte for 16 of 32,768 x 1,536
FP4 = 25_165_824 + SCALES  # half a byte for each of them
FFN_SCALES = 18_350_080
FFN_FP4 = 146_800_640 + FFN_SCALES
SQUARE = 1_327_104 + 8  # an FP4 weight of 1,536 x 1,536 with its scales; alpha and beta
WIDE = 7_741_440 + 8  # 1,536 x 8,960
TRIPLE = 3_981_312 + 8  # 1,536 x 4,608
C2, C4 = 3_072, 6_144  # 1,536 values in bf16, in fp32
MODULATION = 6 * C4
TEXT = 1_572_864  # 512 x 1,536 in bf16
PATCHES = 4_194_304  # 32,768 x 64 in bf16
TRUE_PATCHES = 4_193_280  # 32,760 x 64 in bf16
PACKED = 84_934_656 + 1_572_864  # q, k, v in FP4 with their scales; a row of fp32 a head

GEMM, WIDE_GEMM, TRIPLE_GEMM = 154_618_822_656, 901_943_132_160, 463_856_467_968


class Hand(NamedTuple):
    """A kernel by hand: what it moves (over the bus?), what it computes, at which rate."""

    bytes: int
    operations: int = 0
    rate: float = 1.0
    bus: bool = False

    @property
    def microseconds(self) -> float:
        moved = self.bytes / (63e3 if self.bus else 1.79e6)
        return max(moved, self.operations / self.rate / 1e-6) + 2


FP4_RATE, BF16_RATE, MHA_RATE, SAGE_RATE = 1676e12, 209e12, 214e12, 760e12
QUANTISE, MOVE = Hand(X + FP4), Hand(2 * SCALES)
LINEAR = Hand(FP4 + SQUARE + X, GEMM, FP4_RATE)
TO_QKV = Hand(FP4 + TRIPLE + QKV, TRIPLE_GEMM, FP4_RATE)

ATTENTION = [
    # qkv and the RoPE tables of 32,760 tokens, bias, norms and scales, and 8 rows that are cleared.
    Hand(301_916_160 + 16_773_120 + 15_360 + 12 + PACKED + 24_576),
    # All tiles but the last 12, of 12 x 32,760 rows of 128 values but 1,528.
    Hand(PACKED + 256 * 391_592, 4 * 391_592 * 32_760 * 128, SAGE_RATE),
    # These in 14 parts, on 168 multiprocessors: q of 12 tiles, k and v of a head, a row of fp32.
    Hand(110_592 + 148 * 32_768 + 168 * 66_560, 4 * 1_528 * 32_760 * 128, SAGE_RATE),
    Hand(168 * 66_560 + 256 * 1_528),
]
"""The region of the attention."""

FC1 = Hand(FP4 + WIDE + FFN, WIDE_GEMM, FP4_RATE)
FC2 = Hand(FFN_FP4 + WIDE + X, WIDE_GEMM, FP4_RATE)
GATED_NORM = Hand(3 * X + C2 + 3 * C4 + FP4)
NORM = Hand(3 * X + C2 + 2 * C4 + FP4)
GELU = Hand(FFN + 17_920 + FFN_FP4)
# Queries, bias, weight of the norm, 192 keys and values, their biases, the count of their tiles.
CROSS = Hand(X + 2 * C2 + 2 * 192 * C2 + 4 * 192 + 4 + FP4, 4 * 32_768 * 192 * 1_536, MHA_RATE)
FUSED_BLOCK = [
    *(QUANTISE, MOVE, LINEAR),
    *(GATED_NORM, MOVE, LINEAR),
    *(CROSS, MOVE, LINEAR),
    *(NORM, MOVE, FC1),
    *(GELU, Hand(2 * FFN_SCALES), FC2),
    *(GATED_NORM, MOVE, TO_QKV),
    *ATTENTION,
]
"""A block with every fusion: what the project's own kernels are, and the GEMMs between them."""


def section(page: str, title: str) -> list[list[str]]:
    """Cells of the rows of the table under a heading, without its head."""
    text = page.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\|(.*)\|$", text, re.MULTILINE)[2:]
    return [[cell.strip() for cell in row.split("|")] for row in rows]


def shown(hand: Hand) -> list[str]:
    """Megabytes, billions of operations and microseconds as the page shows them."""
    operations = f"{hand.operations / 1e9:,.1f}" if hand.operations else ""
    return [f"{hand.bytes / 1e6:,.1f}", operations, f"{hand.microseconds:,.1f}"]


SYMBOLS = {
    "D": LATENTS,
    "L": 32_768,
    "N": 32_760,
    "C": 1_536,
    "F": 8_960,
    "T": 512,
    "K": 192,
    "P": PACKED,
}


def formula_bytes(formula: str) -> float:
    """Value of a formula of the page: sums of products of numbers and symbols, like 9LC/16."""
    value = 0.0
    for term in formula.split(" + "):
        product = 1.0
        for factor in term.split(" x "):
            match = re.fullmatch(r"([\d,]*)([A-Z]*)(?:/(\d+))?", factor)
            assert match, factor
            number, symbols, divisor = match.groups()
            product *= int(number.replace(",", "") or 1) / int(divisor or 1)
            product *= math.prod(SYMBOLS[symbol] for symbol in symbols)
        value += product
    return value


def total_row(kernels: list[Hand]) -> list[str]:
    sums = (
        sum(hand.bytes for hand in kernels) / 1e6,
        sum(hand.operations for hand in kernels) / 1e9,
        sum(hand.microseconds for hand in kernels),
    )
    return [f"**{value:,.1f}**" for value in sums]
