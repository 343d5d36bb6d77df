"""Descriptions of the loop's small kernels, as csrc/fastwan_plugins.h declares them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from fastwan.errors import BadInput

MAX_TERMS = 8
"""Tensors that one combine kernel reads, and terms of one of its sums, at most."""

MAX_SUMS = 2
"""Sums that one combine kernel makes at most."""

DTYPES = {"float32": 0, "bfloat16": 1, "float16": 2}
"""``fastwan_dtype`` by numpy name."""


class CombineDesc(ctypes.Structure):
    """``fastwan_combine_desc``."""

    _fields_ = (
        ("struct_bytes", ctypes.c_uint32),
        ("num_terms", ctypes.c_uint32),
        ("num_sums", ctypes.c_uint32),
        ("dtypes", ctypes.c_uint32 * MAX_TERMS),
        ("counts", ctypes.c_uint32 * MAX_SUMS),
        ("indices", ctypes.c_uint32 * MAX_TERMS * MAX_SUMS),
        ("weights", ctypes.c_double * MAX_TERMS * MAX_SUMS),
        ("elements", ctypes.c_int64),
    )


class CastDesc(ctypes.Structure):
    """``fastwan_cast_desc``."""

    _fields_ = (
        ("struct_bytes", ctypes.c_uint32),
        ("source_dtype", ctypes.c_uint32),
        ("target_dtype", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("pitch", ctypes.c_int64),
    )


def combine_desc(
    dtypes: Sequence[str], sums: Sequence[Sequence[tuple[int, float]]], elements: int
) -> CombineDesc:
    """Description of weighted sums.

    Args:
        dtypes: of the terms.
        sums: for each output its (index of a term, weight) in the order of addition.

    Raises:
        BadInput: more than one kernel holds, or an unknown dtype.
    """
    longest = max(map(len, sums), default=0)
    if len(dtypes) > MAX_TERMS or len(sums) > MAX_SUMS or longest > MAX_TERMS:
        raise BadInput(f"{len(dtypes)} terms, {len(sums)} sums: too many", where="combine")
    desc = CombineDesc(ctypes.sizeof(CombineDesc), len(dtypes), len(sums))
    for index, dtype in enumerate(dtypes):
        desc.dtypes[index] = _dtype(dtype)
    for row, terms in enumerate(sums):
        desc.counts[row] = len(terms)
        for position, (index, weight) in enumerate(terms):
            desc.indices[row][position] = index
            desc.weights[row][position] = weight
    desc.elements = elements
    return desc


def cast_desc(source_dtype: str, target_dtype: str, rows: tuple[int, int, int]) -> CastDesc:
    """Description of a cast.

    Args:
        rows: rows, columns and elements from row to row of the source.

    Raises:
        BadInput: an unknown dtype.
    """
    size, types = ctypes.sizeof(CastDesc), (_dtype(source_dtype), _dtype(target_dtype))
    return CastDesc(size, *types, 0, *rows)


def _dtype(name: str) -> int:
    if name not in DTYPES:
        raise BadInput(f"no kernel for {name}", where="elementwise", fix="one of float32, 16 bit")
    return DTYPES[name]
