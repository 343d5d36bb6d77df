"""Noise by the plugin library: the bytes of ``fastwan.runtime.model.normal``, on the host."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fastwan.plugins.loader import PluginLibrary

_SEED, _DRAW = "fastwan_normals_seed", "fastwan_normals_draw"


class _State(ctypes.Structure):
    """``fastwan_normals`` of csrc/normals.h."""

    _fields_ = (
        ("words", ctypes.c_uint32 * 624),
        ("used", ctypes.c_uint32),
        ("has_kept", ctypes.c_uint32),
        ("kept", ctypes.c_double),
    )


class LibraryNormals:
    """Draws what ``torch.Generator("cpu").manual_seed(seed)`` draws, in the same order.

    A call holds no lock of the interpreter, so other threads run beside it.

    Args:
        seed: 0 to 2**64 - 1, of which the twister takes the lower 32 bits.
    """

    def __init__(self, library: PluginLibrary, seed: int) -> None:
        self._library = library
        self._state = _State()
        library.call(_SEED, ctypes.byref(self._state), ctypes.c_uint32(seed & 0xFFFFFFFF))

    def normal(self, shape: Sequence[int]) -> npt.NDArray[np.float32]:
        """Numbers of mean 0 and deviation 1, fp32 with bf16 values, as the next ``torch.randn``."""
        numbers = np.empty(math.prod(shape), np.float32)
        self._library.call(
            _DRAW,
            ctypes.byref(self._state),
            ctypes.c_void_p(numbers.ctypes.data),
            ctypes.c_int64(len(numbers)),
        )
        return numbers.reshape(tuple(shape))


def draws_normals(library: PluginLibrary) -> bool:
    """Whether a library has the functions; one that a bundle brought may be older than they are."""
    return library.has(_SEED) and library.has(_DRAW)
