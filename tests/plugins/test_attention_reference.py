"""The torch reference against a second one, written row by row in numpy from the format alone."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fastwan.errors import BadInput
from fastwan.plugins import attention_reference, packing

SCALE = 128**-0.5
Rows = NDArray[np.float32]


def e4m3(x: Rows) -> Rows:
    return np.clip(x, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)


def e2m1(x: Rows) -> Rows:
    return np.clip(x, -6, 6).astype(ml_dtypes.float4_e2m1fn).astype(np.float32)


def fake_quantise(x: Rows) -> Rows:
    """Blocks of 16 along the last axis."""
    blocks = x.reshape(*x.shape[:-1], -1, 16)
    scale = e4m3(np.abs(blocks).max(-1, keepdims=True) / np.float32(6))
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    return (e2m1(blocks * inverse) * scale).reshape(x.shape)


def attend_row(q: Rows, k: Rows, v: Rows, length: int, exact_max: bool) -> Rows:
    """One query row [D] over dequantised keys and values [Lp, D]; tiles from last to first."""
    c = np.float32(SCALE * math.log2(math.e))
    out, total, top = np.zeros(128, np.float32), np.float32(0), -np.float32(np.inf)
    for tile in range(len(k) // 128 - 1, -1, -1):
        logits = k[tile * 128 : tile * 128 + 128] @ q
        logits[np.arange(128) + tile * 128 >= length] = -np.inf
        groups = logits.reshape(8, 16).max(-1)
        if tile == len(k) // 128 - 1 and not exact_max:
            groups = np.maximum(groups, 0)
        new = max(top, groups.max())
        keep = np.float32(0) if top == -np.inf else np.exp2((top - new) * c)
        p = np.exp2(logits * c - new * c)
        s = (np.exp2(groups * c - new * c) / np.float32(6)).astype(np.float32)
        with np.errstate(invalid="ignore", divide="ignore"):
            codes = e2m1(np.nan_to_num(p.reshape(8, 16) / s[:, None], nan=0.0))
        quantised = (codes * e4m3(s)[:, None]).reshape(128)
        out = out * keep + quantised @ v[tile * 128 : tile * 128 + 128]
        total, top = total * keep + p.sum(), new
    return out / total if total else out * 0


def second_reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, exact_max: bool
) -> torch.Tensor:
    batch, length, heads, _ = q.shape
    padding = (0, 0, 0, -length % 128)
    out = torch.empty(q.shape)
    for b in range(batch):
        for h in range(heads):
            rows, keys, values = (
                functional.pad(x[b, :, h].float(), padding).numpy() for x in (q, k, v)
            )
            rows, keys = fake_quantise(rows), fake_quantise(keys)
            values = fake_quantise(np.ascontiguousarray(values.T)).T
            for row in range(length):
                found = attend_row(rows[row], keys, values, length, exact_max)
                out[b, row, h] = torch.from_numpy(found)
    return out


def inputs(
    batch: int, length: int, heads: int, std: float, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v whose logits have standard deviation `std` after the softmax scale."""
    generator = torch.Generator().manual_seed(seed)
    scales = (math.sqrt(std), math.sqrt(std), 1.0)
    q, k, v = (
        (torch.randn(batch, length, heads, 128, generator=generator) * s).bfloat16() for s in scales
    )
    return q, k, v


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize("exact_max", [False, True])
@pytest.mark.parametrize(
    ("batch", "length", "heads", "std"),
    [(1, 1, 1, 1.0), (1, 127, 1, 3.0), (2, 128, 1, 1.0), (1, 129, 2, 1.0), (1, 300, 1, 3.0)],
)
def test_equals_the_second_reference(
    batch: int, length: int, heads: int, std: float, exact_max: bool
) -> None:
    q, k, v = inputs(batch, length, heads, std)
    found = attention_reference.sage_attention(q, k, v, SCALE, exact_max=exact_max)
    expected = second_reference(q, k, v, exact_max)
    # Sums in another order move a probability over a rounding tie now and then.
    assert difference(found, expected) < 5e-3
    assert found.dtype == torch.bfloat16


@pytest.mark.parametrize("length", [96, 200])
def test_first_tile_clamp_only_matters_where_all_logits_are_negative(length: int) -> None:
    q, k, v = inputs(1, length, 1, 1.0)
    k = -q[:, :1].expand_as(k).abs() * (1 + 0.1 * k.abs())
    q = q.abs()
    exact = functional.scaled_dot_product_attention(
        *(x.float().transpose(1, 2) for x in (q, k, v))
    ).transpose(1, 2)
    clamped = difference(attention_reference.sage_attention(q, k, v, SCALE), exact)
    free = difference(attention_reference.sage_attention(q, k, v, SCALE, exact_max=True), exact)
    assert free < 0.25
    assert clamped > 2 * free
    positive = (q, -k, v)
    assert torch.equal(
        attention_reference.sage_attention(*positive, SCALE),
        attention_reference.sage_attention(*positive, SCALE, exact_max=True),
    )


@pytest.mark.parametrize(("std", "limit"), [(0.3, 0.2), (1.0, 0.23), (3.0, 0.35)])
def test_error_against_exact_attention_is_that_of_the_format(std: float, limit: float) -> None:
    q, k, v = inputs(1, 512, 2, std)
    exact = functional.scaled_dot_product_attention(
        *(x.float().transpose(1, 2) for x in (q, k, v))
    ).transpose(1, 2)
    error = difference(attention_reference.sage_attention(q, k, v, SCALE), exact)
    assert 0.05 < error < limit


def test_values_that_are_representable_come_through() -> None:
    q, k, _ = inputs(1, 256, 1, 1.0)
    v = torch.full((1, 256, 1, 128), 3.0).bfloat16()
    out = attention_reference.sage_attention(q, k, v, SCALE).float()
    assert float((out / 3.0 - 1).abs().max()) < 0.1  # P is quantised, its sum is not


def test_an_inexact_reciprocal_changes_ties_only() -> None:
    q, k, v = inputs(1, 128, 1, 1.0)
    exact = packing.pack_operands(q, k, v)
    moved = packing.pack_operands(q, k, v, reciprocal_ulps=1)
    assert torch.equal(exact.q_scale, moved.q_scale)
    changed = (exact.q != moved.q).float().mean()
    assert 0 < changed < 0.2


def test_heads_and_batches_in_parts_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = inputs(2, 200, 3, 1.0)
    whole = attention_reference.sage_attention(q, k, v, SCALE)
    monkeypatch.setattr(attention_reference, "_ELEMENTS_AT_ONCE", 1)
    assert difference(attention_reference.sage_attention(q, k, v, SCALE), whole) < 2e-3


def test_a_wrong_head_dimension_is_refused() -> None:
    q = torch.zeros(1, 4, 1, 64).bfloat16()
    with pytest.raises(BadInput, match="128"):
        attention_reference.sage_attention(q, q, q, SCALE)
