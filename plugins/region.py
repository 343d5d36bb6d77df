"""Regions as the C interface describes them; the structures of csrc/fastwan_plugins.h."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

_REGION_SAGE_ATTENTION3 = 1
_FLAG_EXACT_MAX = 1


class RegionDesc(ctypes.Structure):
    """``fastwan_region_desc``."""

    _fields_ = (
        ("struct_bytes", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
        ("batch", ctypes.c_int32),
        ("length", ctypes.c_int32),
        ("num_tokens", ctypes.c_int32),
        ("num_heads", ctypes.c_int32),
        ("eps", ctypes.c_float),
        ("softmax_scale", ctypes.c_float),
        ("flags", ctypes.c_uint32),
    )


class SageLayout(ctypes.Structure):
    """``fastwan_sage_layout``: byte offsets of the packed operands in the workspace."""

    _fields_ = (
        ("padded_tokens", ctypes.c_int64),
        ("q", ctypes.c_int64),
        ("q_scale", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("k_scale", ctypes.c_int64),
        ("v", ctypes.c_int64),
        ("v_scale", ctypes.c_int64),
        ("delta_s", ctypes.c_int64),
        ("total", ctypes.c_int64),
    )


@dataclass(frozen=True)
class SageRegion:
    """One ``fastwan::SageAttention3`` node: everything between the qkv and the output GEMM.

    Inputs, in order: qkv [B, L, 3C] bf16, qkv_scale [3] fp32, qkv_bias [3C] bf16, q_norm [C] and
    k_norm [C] bf16, rope_cos and rope_sin [L, 64] fp32. Output: [B, L, C] bf16.
    """

    batch: int
    length: int
    num_tokens: int
    num_heads: int
    eps: float
    softmax_scale: float
    exact_max: bool = False

    def desc(self) -> RegionDesc:
        """The C structure that describes this region."""
        return RegionDesc(
            ctypes.sizeof(RegionDesc),
            _REGION_SAGE_ATTENTION3,
            self.batch,
            self.length,
            self.num_tokens,
            self.num_heads,
            self.eps,
            self.softmax_scale,
            _FLAG_EXACT_MAX if self.exact_max else 0,
        )
