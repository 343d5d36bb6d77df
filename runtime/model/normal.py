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
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint32]

_BLOCK = 16
_CHUNK = 4096 * _BLOCK
"""Numbers made at a time: their intermediate results stay in a core's cache."""

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

    On one thread: several that take turns with the interpreter after each of numpy's functions
    wait for each other longer than one of them takes for all.

    Args:
        seed: 0 to 2**64 - 1, of which the twister takes the lower 32 bits.
    """

    def __init__(self, seed: int) -> None:
        self._twister = np.random.RandomState(seed & 0xFFFFFFFF)
        self._kept: float | None = None
        self._box_muller = _BoxMuller()

    def normal(self, shape: Sequence[int]) -> Floats:
        """Numbers of mean 0 and deviation 1 with bf16 values, as the next ``torch.randn``."""
        size = math.prod(shape)
        numbers = np.empty(size, np.float32)
        if size < _BLOCK:
            numbers[:] = [self._single() for _ in range(size)]
            _round(numbers, np.empty(size, np.uint32))
            return numbers.reshape(tuple(shape))
        whole = size - size % _BLOCK
        for begin in range(0, whole, _CHUNK):
            self._fill(numbers[begin : min(begin + _CHUNK, whole)])
        if whole < size:
            # The last block is drawn anew, and writes over a part of the one before.
            self._fill(numbers[-_BLOCK:])
        return numbers.reshape(tuple(shape))

    def _fill(self, numbers: Floats) -> None:
        self._box_muller.fill(numbers, self._bits(len(numbers)))

    def _bits(self, count: int) -> Words:
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


class _BoxMuller:
    """Makes normal numbers of integers, a chunk at a time.

    Intermediate results lie in the same memory for every chunk: fresh pages take longer to come
    than a function takes to fill them.
    """

    def __init__(self) -> None:
        half = _CHUNK // 2
        self._floats = np.empty((4, half), np.float32)
        self._flags = np.empty((2, half), np.bool_)
        self._words = np.empty(_CHUNK, np.uint32)

    def fill(self, numbers: Floats, bits: Words) -> None:
        """Numbers with bf16 values; in a block of 16, eight radii come first and then the angles.

        Args:
            numbers: a multiple of 16, `_CHUNK` at most.
            bits: as many, of which the lower 24 bits are taken; they are written over.
        """
        half = len(bits) // 2
        for_radius, angle, radius, number = self._floats[:, :half]
        unclear, flag = self._flags[:, :half]
        below = self._words[:half]
        np.bitwise_and(bits, np.uint32(0xFFFFFF), out=bits)
        pairs = bits.view(np.int32).reshape(-1, 2, _BLOCK // 2)
        made = numbers.reshape(pairs.shape)
        blocks = made[:, 0].shape
        # Of u = bits * 2**-24 they are 1 - u and 2 pi u: a power of two changes no rounding.
        np.copyto(for_radius.reshape(blocks), pairs[:, 0])
        np.subtract(np.float32(1 << 24), for_radius, out=for_radius)
        for_radius *= np.float32(2**-24)
        np.copyto(angle.reshape(blocks), pairs[:, 1])
        angle *= np.float32(2 * math.pi) * np.float32(2**-24)
        np.log(for_radius, out=radius)
        radius *= np.float32(-2)
        np.sqrt(radius, out=radius)
        np.less(radius, _SMALL_RADIUS, out=unclear)
        for index, turned in enumerate((np.cos, np.sin)):
            turned(angle, out=number)
            np.abs(number, out=below.view(np.float32))
            unclear |= np.less(below.view(np.float32), _SMALL_SINE, out=flag)
            number *= radius
            number += np.float32(0)  # the mean, which makes +0 of -0
            np.bitwise_and(number.view(np.uint32), np.uint32(0xFFFF), out=below)
            below -= np.uint32(0x8000 - _NEAR)
            unclear |= np.less(below, np.uint32(2 * _NEAR), out=flag)
            made[:, index] = number.reshape(blocks)
        anew = np.flatnonzero(unclear)
        block, place = np.divmod(anew, _BLOCK // 2)
        for index, right in enumerate(_exact(for_radius[anew], angle[anew])):
            made[block, index, place] = right
        _round(numbers, self._words[: len(numbers)])


def _round(numbers: Floats, work: Words) -> None:
    """Round finite numbers to the nearest of bf16, ties to even, in place.

    Args:
        work: as many words, written over.
    """
    bits = numbers.view(np.uint32)
    np.right_shift(bits, np.uint32(16), out=work)
    work &= np.uint32(1)
    work += np.uint32(0x7FFF)
    bits += work
    bits &= np.uint32(0xFFFF0000)


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
