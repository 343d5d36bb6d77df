"""Seeded weights that look like a trained model's, drawn at the speed of a disk.

A value is a quantile of the normal distribution picked by 16 random bits: approximately Gaussian
(65,536 levels, none beyond 4.3 standard deviations), every tensor with a stream of its own. The
bits come from a NumPy bit generator, whose raw stream is fixed across versions and machines
(NumPy's distributions are not), seeded with SHA-256 of the seed and the tensor's name; the table
of quantiles is rounded to the target's dtype once per standard deviation.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint16]
Values = NDArray[np.float64]

_LEVELS = 1 << 16
_CHUNK = 1 << 18
_BF16_TIMES_4 = 2 << 7
"""Added to the bits of a bf16 number, raises its exponent by two."""


@dataclass(frozen=True)
class Fill:
    """Distribution of a tensor: normal, with a few channels of the last dimension larger.

    Attributes:
        sigma: standard deviation of most values.
        mean: mean of all values; only for vectors and tables.
        outliers: one channel in this many is four times as large (0: none), so that FP4 blocks
            see a wide range.
    """

    sigma: float
    mean: float = 0.0
    outliers: int = 0


def dit_fill(name: str, shape: tuple[int, ...]) -> Fill:
    """How a transformer tensor is filled, by its diffusers name."""
    if name.endswith("scale_shift_table"):
        return Fill(0.25, outliers=64)
    if "attn2.norm" in name:
        # Sharp, as in a trained model: a short prompt has to be found among 500 rows of padding.
        return Fill(0.1, mean=1.7, outliers=128)
    if name.endswith(("norm_q.weight", "norm_k.weight", "norm2.weight")):
        return Fill(0.1, mean=1.0, outliers=128)
    if name.endswith(".bias"):
        return Fill(0.02)
    fan_in = math.prod(shape[1:])
    # Small where a trained model is: the modulation and the velocity itself.
    if "time_proj" in name:
        return Fill(0.3 / math.sqrt(fan_in))
    if name == "proj_out.weight":
        return Fill(0.5 / math.sqrt(fan_in))
    return Fill(1.0 / math.sqrt(fan_in), outliers=96 if name.startswith("blocks.") else 0)


def text_encoder_fill(name: str, shape: tuple[int, ...], d_kv: int) -> Fill:
    """How a UMT5 tensor is filled; T5 attention is not scaled, so its queries are small."""
    if name.endswith("norm.weight"):
        return Fill(0.1, mean=1.0, outliers=128)
    if name == "shared.weight":
        return Fill(1.0)
    if name.endswith("relative_attention_bias.weight"):
        return Fill(0.5)
    fan_in = shape[1] * d_kv if name.endswith("SelfAttention.q.weight") else shape[1]
    return Fill(1.0 / math.sqrt(fan_in), outliers=96)


def bf16_chunks(seed: int, name: str, shape: tuple[int, ...], fill: Fill) -> Iterator[Bits]:
    """The bits of a bf16 tensor, in consecutive chunks of whole rows (little-endian).

    Args:
        shape: for the outlier channels, the last dimension counts.
    """
    stream = _stream(seed, name)
    columns = shape[-1]
    rows = math.prod(shape) // columns
    large = _outliers(stream, columns, fill.outliers)
    if fill.mean:
        values = fill.mean + fill.sigma * _normals(stream, (rows, columns))
        values[:, large] *= 4
        yield _bf16(values)
        return
    table = _bf16_table(fill.sigma)
    step = max(1, _CHUNK // columns)
    for begin in range(0, rows, step):
        count = min(step, rows - begin)
        bits = table.take(_draw(stream, count * columns), mode="clip").reshape(count, columns)
        bits[:, large] += _BF16_TIMES_4
        yield bits


def taehv_weights(seed: int, name: str, shape: tuple[int, ...]) -> NDArray[np.float16]:
    """An fp16 tensor of a TAEHV file.

    Latents decode to soft coloured shapes around mid-grey instead of noise or a flat picture:
    filters of 3x3 are low-pass, those to the image cancel the mean of the ReLUs before them, and
    the frames that a time growth makes of one are nearly alike.
    """
    normals = _normals(_stream(seed, name), shape)
    if name.endswith(".bias"):
        centre = 0.5 if name == "decoder.22.bias" else 0.0
        return (centre + 0.02 * normals).astype("<f2")
    weights = _taehv_gain(name) / math.sqrt(shape[1]) * normals
    if shape[-1] == 3:
        window = np.array([1.0, 2.0, 1.0])
        weights = weights * (window[:, None] * window[None, :]) / 16
    if name == "decoder.22.weight":
        weights[:, 1::2] = -weights[:, ::2]
    if name == "decoder.20.weight":
        # Pairs of channels a, -a: the last ReLU and the filters above make a of them again.
        weights[1::2] = -weights[::2]
        weights[:, 1::2] = -weights[:, ::2]
    if name.startswith("decoder.") and shape[0] == 2 * shape[1]:
        frame = shape[1]
        weights[frame:] = weights[:frame] + 0.2 * weights[frame:]
    return weights.astype("<f2")


def _taehv_gain(name: str) -> float:
    """Standard deviation of a filter's weights times the root of its input channels.

    Found by trying: every level, memory blocks included, keeps values of the order of one, and a
    decoded frame has a standard deviation of about 0.2.
    """
    if name == "decoder.22.weight":
        return 2.2
    if name == "decoder.1.weight":
        return 4.0
    if ".conv.4." in name:
        # A memory block's last convolution is a correction to what the block passes on.
        return 1.0
    return 2.5 if ".conv.0" in name or ".conv.2" in name else 1.5


def _stream(seed: int, name: str) -> np.random.PCG64:
    key = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.PCG64(np.random.SeedSequence(int.from_bytes(key, "little")))


def _draw(stream: np.random.PCG64, count: int) -> Bits:
    words: NDArray[np.uint64] = np.asarray(stream.random_raw(-(-count // 4)), dtype="<u8")
    bits: Bits = words.view("<u2")
    return np.asarray(bits[:count])


def _normals(stream: np.random.PCG64, shape: tuple[int, ...]) -> Values:
    return _quantiles()[_draw(stream, math.prod(shape))].reshape(shape)


def _outliers(stream: np.random.PCG64, columns: int, one_in: int) -> NDArray[np.intp]:
    if not one_in:
        return np.empty(0, dtype=np.intp)
    picked = _draw(stream, -(-columns // one_in)).astype(np.intp) % columns
    return np.unique(picked)


@lru_cache(maxsize=1)
def _quantiles() -> Values:
    quantile = NormalDist().inv_cdf
    upper = np.array([quantile((i + 0.5) / _LEVELS) for i in range(_LEVELS // 2, _LEVELS)])
    return np.concatenate([-upper[::-1], upper])


@lru_cache(maxsize=64)
def _bf16_table(sigma: float) -> Bits:
    return _bf16(_quantiles() * sigma)


def _bf16(values: Values) -> Bits:
    """Round to the nearest bf16, ties to even; finite input."""
    bits = values.astype("<f4").view("<u4")
    rounded: Bits = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
    return rounded
