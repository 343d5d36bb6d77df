"""What the numbers of a call have to be: integers, and finite."""

from __future__ import annotations

import operator

import ml_dtypes
import numpy as np

from fastwan.errors import BadInput, VerificationFailed, shown
from fastwan.runtime.model.executor import Array

FLOATS = ("float16", "bfloat16", "float32", "float64")
"""Names of the formats that embeddings, latents and scales may come in."""

LARGEST = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)
"""Beyond it a number becomes Inf where a model takes it as bfloat16."""

_TOO_LARGE = 1 << 128


def integer(value: object, name: str, fix: str = "") -> int:
    """A Python, numpy or torch integer as an `int`, of 128 bits at most.

    Args:
        name: of the argument, for the error.

    Raises:
        BadInput: another type, `bool` and `float` included, or a larger one.
    """
    if not isinstance(value, bool):
        try:
            number = operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            pass
        else:
            if abs(number) < _TOO_LARGE:
                return number
            # Python refuses to print thousands of digits.
            raise BadInput(f"{name} has too many digits", where=name, fix=fix)
    raise BadInput(f"{name} is {shown(value)}, not an integer", where=name, fix=fix)


def is_finite(array: Array) -> bool:
    """Whether every value is a number that bfloat16 can hold: no NaN, no Inf, nothing beyond."""
    with np.errstate(over="ignore"):
        values = array.astype(np.float32, copy=False)
    # A NaN is the largest and the smallest of all, and smaller and larger than nothing.
    return bool(values.max(initial=0.0) <= LARGEST and values.min(initial=0.0) >= -LARGEST)


def check_finite(latents: Array, when: str) -> None:
    """Refuse to go on with latents that are not finite.

    Raises:
        VerificationFailed: they hold NaN or Inf.
    """
    if not is_finite(latents):
        raise VerificationFailed(
            f"the latents hold NaN or Inf {when}",
            where="denoise",
            fix="a weight or scale of the bundle is broken: fastwan-export verify",
        )
