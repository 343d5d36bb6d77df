"""Roundings are told from faults, number format by number format."""

from __future__ import annotations

import ml_dtypes  # noqa: F401
import numpy as np
import pytest

from fastwan.runtime.device.difference import difference, significant

ROWS, COLUMNS = 256, 256
RANDOM = np.random.default_rng(3)
CODES = RANDOM.integers(0, 256, (ROWS, COLUMNS // 2), np.uint8)
SCALES = RANDOM.integers(0x30, 0x40, (ROWS, COLUMNS // 16), np.uint8)


def test_the_same_is_no_difference() -> None:
    for raw, dtype in ((CODES, "float4_e2m1fn"), (SCALES, "float8_e4m3fn"), (CODES, "bfloat16")):
        found = difference("x", raw, raw.copy(), dtype)
        assert (found.differing, found.whole, found.worst_row, found.rounding) == (0, 0, 0, True)


@pytest.mark.parametrize(
    ("a", "b", "apart"),
    [
        (0x0, 0x8, False),  # both zeros
        (0x8, 0x1, False),  # -0 and 0.5
        (0x1, 0x9, True),  # 0.5 and -0.5
        (0x6, 0x7, False),  # 4 and 6
        (0x5, 0x7, True),  # 3 and 6
        (0xE, 0xF, False),  # -4 and -6
        (0x7, 0xF, True),
    ],
)
@pytest.mark.parametrize("shift", [0, 4])
def test_steps_of_a_code(a: int, b: int, apart: bool, shift: int) -> None:
    left, right = (np.array([[code << shift]], np.uint8) for code in (a, b))
    found = difference("codes", left, right, "float4_e2m1fn")
    assert found.whole == (0.5 if apart else 0)
    assert found.rounding is not apart


@pytest.mark.parametrize("step", [1, 2])
def test_steps_of_a_scale(step: int) -> None:
    found = difference("scales", SCALES + np.uint8(step), SCALES, "float8_e4m3fn")
    assert found.differing == 1
    assert found.rounding is (step == 1)


@pytest.mark.parametrize("swap", [False, True])
def test_rows_that_are_swapped_are_no_rounding(swap: bool) -> None:
    """Two rows of many hardly show in the mean."""
    many = np.repeat(SCALES, 16, axis=0)
    moved = many.copy()
    if swap:
        moved[[15, 16]] = moved[[16, 15]]
    found = difference("scales", moved, many, "float8_e4m3fn")
    assert found.whole < 1e-3
    assert found.rounding is not swap


@pytest.mark.parametrize(("error", "rounding"), [(2**-9, True), (0.05, False), (np.nan, False)])
def test_other_numbers_differ_by_their_roundings(error: float, rounding: bool) -> None:
    expected = RANDOM.standard_normal((ROWS, COLUMNS)).astype("float32")
    found = (expected * (1 + error)).astype("float32")
    left, right = (each.view(np.uint8) for each in (found, expected))
    assert difference("hidden", left, right, "float32").rounding is rounding


def test_codes_without_a_scale_count_as_zeros() -> None:
    scales = SCALES.copy()
    scales[3, 2], scales[4, 5] = 0, 0x80
    kept = significant(CODES, scales)
    expected = CODES.copy()
    expected[3, 16:24] = expected[4, 40:48] = 0
    assert np.array_equal(kept, expected)
    assert not np.array_equal(kept, CODES)


def test_one_row_of_other_numbers_counts() -> None:
    expected = RANDOM.standard_normal((1 << 15, 64)).astype("bfloat16")
    found = expected.copy()
    found[-1] = found[-1, ::-1]
    left, right = (each.view(np.uint8) for each in (found, expected))
    made = difference("hidden", left, right, "bfloat16")
    assert made.whole < 0.01
    assert not made.rounding
