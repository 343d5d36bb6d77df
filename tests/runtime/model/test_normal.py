"""Normal numbers without torch: the bytes are those of its generator on the CPU."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastwan.runtime.model import normal
from fastwan.runtime.model.normal import NormalGenerator

SHAPE_480P = (1, 21, 16, 60, 104)

EXPECTED = "4a8b270f8e80cd07af5f234369065a5edd059def5c220b5929c2e06e88c97a98"
"""SHA-256 of the first 65,536 numbers of the published seed."""

avx2 = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="torch takes other functions without AVX2",
)


def drawn(generator: torch.Generator, shape: Sequence[int]) -> np.ndarray:
    numbers = torch.randn(tuple(shape), generator=generator, dtype=torch.bfloat16)
    return numbers.float().numpy()


def same_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


SIZES = st.one_of(
    st.lists(st.integers(0, 6), max_size=4),
    st.tuples(st.integers(0, 200)),
)


@avx2
@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**64 - 1), st.lists(SIZES, min_size=1, max_size=4))
def test_every_shape_of_every_seed_is_torchs(seed: int, shapes: list[Sequence[int]]) -> None:
    """Also below 16, where numbers come singly, and beside the last block, which is drawn anew."""
    ours, theirs = NormalGenerator(seed), torch.Generator().manual_seed(seed)
    for shape in shapes:
        assert same_bytes(ours.normal(shape), drawn(theirs, shape))


@avx2
@pytest.mark.parametrize("seed", [0, 1024, 2**32 - 1, 2**64 - 1])
def test_latents_of_a_large_video_are_torchs(seed: int) -> None:
    ours, theirs = NormalGenerator(seed), torch.Generator().manual_seed(seed)
    first = ours.normal(SHAPE_480P)
    assert same_bytes(first, drawn(theirs, SHAPE_480P))
    assert not same_bytes(first, drawn(theirs, SHAPE_480P))


def test_numbers_are_the_same_on_every_machine() -> None:
    """Neither a processor nor a library decides them."""
    found = NormalGenerator(1024).normal([1 << 16])
    assert (found[:4] * 256).tolist() == [-298.0, 336.0, 38.5, 580.0]
    assert hashlib.sha256(found.tobytes()).hexdigest() == EXPECTED


def test_borders_are_those_of_the_exact_functions() -> None:
    """Radii of 0 to the largest and angles about each quarter: where fast functions err most."""
    least = np.arange(4096, dtype=np.uint32)
    quarters = np.array([0, 1, 2, 3], np.uint32)[:, None] << 22
    angles = (quarters + np.concatenate([least[:2048], -least[:2048]])).ravel() & 0xFFFFFF
    radii = np.concatenate([least, 0xFFFFFF - least, least << 12, 0xFFFFFF - (least << 12)])
    bits = np.stack([radii.reshape(-1, 8), angles.reshape(-1, 8)], axis=1).astype(np.uint32)
    numbers = np.empty(bits.size, np.float32)
    uniform = bits.astype(np.float32) * np.float32(2**-24)
    normal._BoxMuller().fill(numbers, bits.ravel())
    exact = normal._exact(1 - uniform[:, 0], np.float32(2 * np.pi) * uniform[:, 1])
    made = numbers.reshape(bits.shape).astype(ml_dtypes.bfloat16)
    for half, right in enumerate(exact):
        assert made[:, half].tobytes() == right.astype(ml_dtypes.bfloat16).tobytes()


def test_the_size_of_a_chunk_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 5 * normal._CHUNK + 40
    expected = NormalGenerator(7).normal([size])
    for chunk in (16 * 1000, 2 * size + 8):
        monkeypatch.setattr(normal, "_CHUNK", chunk)
        assert same_bytes(NormalGenerator(7).normal([size]), expected)
    assert not same_bytes(NormalGenerator(8).normal([size]), expected)


def test_numbers_are_normal_and_bf16() -> None:
    numbers = NormalGenerator(3).normal([1 << 16])
    assert abs(float(numbers.mean())) < 0.02
    assert abs(float(numbers.std()) - 1) < 0.02
    assert not (numbers.view(np.uint32) & 0xFFFF).any()
