"""Normal numbers as torch draws them in bf16 on a CPU, without torch.

``torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.bfloat16)`` takes 24
bits of each number of a Mersenne twister, makes normal numbers of eight pairs by the Box-Muller
transform in fp32, and rounds them (``aten/src/ATen/native/cpu/DistributionTemplates.h`` of torch
2.13). On x86 with AVX2 it takes logarithm, sine and cosine of ``avx_mathfun.h``, by Julien Pommier
and Giovanni Garberoglio (zlib licence) after Stephen Moshier's Cephes; their polynomials are
evaluated here with the same rounding after each operation, for the few numbers that numpy's own
functions leave too near the border of two bf16 values to tell. IEEE arithmetic alone decides the
result, so every processor gives the bytes that torch gives there. Where torch has no AVX2 it
takes the C library's functions, and about one number in ten thousand is rounded otherwise.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

_BLOCK = 16
_CHUNK = 2048 * _BLOCK
"""Numbers made at a time: their intermediate results stay in a core's cache."""

_THREADS = 4
"""At most; the twister itself takes a tenth of the time on one."""

_NEAR = 1 << 8
"""fp32 steps from the border of two bf16 values, 2**15 away at most, within which a number of
numpy's functions is made anew. Those are at most 4 steps from the true value and Cephes' about as
many, each of three functions, wherever the next two limits hold."""
_SMALL_SINE = np.float32(2**-5)
"""Of a sine or cosine: below, the reduction of its angle loses more steps."""
_SMALL_RADIUS = np.float32(2**-4)
"""Below, the logarithm does."""

_LOG = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
_LOG_2 = (-2.12194440e-4, 0.693359375)
_COSINE = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
_SINE = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_MINUS_QUARTER_PI = (-0.78515625, -2.4187564849853515625e-4, -3.77489497744594108e-8)


class NormalGenerator:
    """Draws what ``torch.Generator("cpu").manual_seed(seed)`` draws, in the same order.

    Args:
        seed: 0 to 2**64 - 1, of which the twister takes the lower 32 bits.
    """

    def __init__(self, seed: int) -> None:
        self._twister = np.random.RandomState(seed & 0xFFFFFFFF)
        self._kept: float | None = None

    def normal(self, shape: Sequence[int]) -> Floats:
        """Numbers of mean 0 and deviation 1 with bf16 values, as the next ``torch.randn``."""
        size = math.prod(shape)
        if size < _BLOCK:
            numbers = np.array([self._single() for _ in range(size)], np.float32)
        else:
            whole = size - size % _BLOCK
            numbers = np.empty(size, np.float32)
            _fill(numbers[:whole], self._bits(whole))
            if whole < size:
                # The last block is drawn anew, and writes over a part of the one before.
                _fill(numbers[-_BLOCK:], self._bits(_BLOCK))
        rounded = numbers.astype(ml_dtypes.bfloat16).astype(np.float32)
        return rounded.reshape(tuple(shape))

    def _bits(self, count: int) -> npt.NDArray[np.uint32]:
        return self._twister.randint(0, 1 << 32, count, np.uint32)

    def _single(self) -> float:
        """A number of fewer than 16: by Box-Muller in fp64, which keeps the second of each pair."""
        if self._kept is not None:
            number, self._kept = self._kept, None
            return number
        high_1, low_1, high_2, low_2 = map(int, self._bits(4))
        first, second = (
            (((high << 32) | low) & ((1 << 53) - 1)) / (1 << 53)
            for high, low in ((high_1, low_1), (high_2, low_2))
        )
        radius = math.sqrt(-2.0 * math.log1p(-second))
        theta = 2.0 * math.pi * first
        self._kept = radius * math.sin(theta)
        return radius * math.cos(theta)


def _fill(numbers: Floats, bits: npt.NDArray[np.uint32]) -> None:
    """Normal numbers of as many 32-bit integers; blocks of 16 are independent of each other."""
    parts = [slice(begin, begin + _CHUNK) for begin in range(0, len(bits), _CHUNK)]
    threads = min(_THREADS, len(parts), os.cpu_count() or 1)
    if threads < 2:
        for part in parts:
            _box_muller(numbers[part], bits[part])
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda part: _box_muller(numbers[part], bits[part]), parts):
            pass


def _box_muller(numbers: Floats, bits: npt.NDArray[np.uint32]) -> None:
    """Normal numbers of integers; in a block of 16, eight radii come first and then the angles."""
    uniform = (bits & np.uint32(0xFFFFFF)).astype(np.float32) * np.float32(2**-24)
    pairs = uniform.reshape(-1, 2, _BLOCK // 2)
    for_radius, angle = np.float32(1) - pairs[:, 0], np.float32(2 * math.pi) * pairs[:, 1]
    radius = np.sqrt(np.float32(-2) * np.log(for_radius))
    unclear = radius < _SMALL_RADIUS
    halves = []
    for turned in (np.cos(angle), np.sin(angle)):
        unclear |= np.abs(turned) < _SMALL_SINE
        # The mean is added, and makes +0 of -0.
        number = radius * turned + np.float32(0)
        below = number.view(np.uint32) & np.uint32(0xFFFF)
        unclear |= below - np.uint32(0x8000 - _NEAR) < np.uint32(2 * _NEAR)
        halves.append(number)
    anew = np.flatnonzero(unclear)
    made = numbers.reshape(pairs.shape)
    exact = _exact(for_radius.ravel()[anew], angle.ravel()[anew])
    for half, (number, right) in enumerate(zip(halves, exact, strict=True)):
        number.ravel()[anew] = right
        made[:, half] = number


def _exact(for_radius: Floats, angle: Floats) -> tuple[Floats, Floats]:
    """The two numbers of each pair, as torch has them in fp32."""
    radius = np.sqrt(np.float32(-2) * _log(for_radius))
    sine, cosine = _sine_cosine(angle)
    return radius * cosine + np.float32(0), radius * sine + np.float32(0)


def _fma(a: Floats | np.float32, b: Doubles, c: Doubles | float | Floats) -> Floats:
    """``a * b + c`` of fp32 values, rounded once to fp32: fp64 holds the product exactly."""
    product = a * b
    product += c
    return product.astype(np.float32)


def _polynomial(coefficients: Sequence[float], x: Doubles) -> Floats:
    """By Horner's rule, from the highest power on; coefficients are rounded to fp32."""
    first, second, *others = map(np.float32, coefficients)
    y = _fma(first, x, float(second))
    for each in others:
        y = _fma(y, x, float(each))
    return y


def _log(u: Floats) -> Floats:
    """Natural logarithm of fp32 values in (0, 1], as ``log256_ps``."""
    mantissa, exponent = np.frexp(u)
    low = mantissa < np.float32(math.sqrt(0.5))
    e = (exponent - low).astype(np.float32)
    x = (mantissa - np.float32(1)) + np.where(low, mantissa, np.float32(0))
    square = x * x
    y = _polynomial(_LOG, x.astype(np.float64)) * x
    y = _fma(y, square.astype(np.float64), e * np.float32(_LOG_2[0]))
    y -= square * np.float32(0.5)
    return _fma(np.float32(_LOG_2[1]), e.astype(np.float64), x + y)


def _sine_cosine(angle: Floats) -> tuple[Floats, Floats]:
    """Sine and cosine of fp32 angles in [0, 2 pi), as ``sincos256_ps``."""
    octant = ((angle * np.float32(4 / math.pi)).astype(np.int32) + 1) & ~1
    quarters = octant.astype(np.float64)
    x = angle
    for part in _MINUS_QUARTER_PI:
        x = _fma(np.float32(part), quarters, x)
    square = x * x
    z = square.astype(np.float64)
    cosine = _polynomial(_COSINE, z) * square
    cosine = _fma(cosine, z, square * np.float32(-0.5)) + np.float32(1)
    sine = _polynomial(_SINE, z) * square
    sine = _fma(sine, x.astype(np.float64), x)
    exchanged = (octant & 2) != 0
    of_sine = np.where(exchanged, cosine, sine)
    of_cosine = np.where(exchanged, sine, cosine)
    np.negative(of_sine, out=of_sine, where=(octant & 4) != 0)
    np.negative(of_cosine, out=of_cosine, where=((octant - 2) & 4) == 0)
    return of_sine, of_cosine
