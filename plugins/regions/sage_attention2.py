"""``fastwan::SageAttention2``: SageAttention2++ between the qkv and the output GEMM.

Four launches: norms and partial sums, their reduction, quantisation to int8 and e4m3 operands in
the workspace, and the attention over them. What they compute stands in
`fastwan.plugins.sage2_reference`. Inputs and output are those of `SageAttention3`, but that rows of
qkv may have a scale of their own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, ClassVar

from fastwan.manifest import RegionNode, TensorSpec
from fastwan.plugins.regions.attention import HEAD_DIM, AttentionRegion, node_shape
from fastwan.plugins.regions.base import Launch, aligned, real, refuse_unknown, tensor, whole

if TYPE_CHECKING:
    from torch import Tensor

_ALIGNMENT = 1024  # of each part of the workspace (csrc/sage2_layout.h)
_BF16, _FP32 = 2, 4
_SPAN = 32  # tokens of a partial sum
_QUERY_ROWS, _KEY_TILE = 32, 64
_VALUE_BYTES = 2  # that the workspace has room for; e4m3 takes one of them
_PER_THREAD, _PER_WARP, _ROW_SCALED = 1, 2, 0x100  # of a mode, csrc/sage2.h


@dataclass(frozen=True)
class Sage2Attributes:
    """Attributes of the node.

    Attributes:
        num_heads: H; C = 128 H.
        num_tokens: true tokens; rows from there on are padding, never read and written as 0.
        per_warp: scales of 32 queries and 64 keys, as published for compute capability 12.0 and
            12.1; else those of a thread, as published for 8.9.
        eps: of the RMS norms.
        softmax_scale: applied to the logits.
        row_scaled: the node has one more input, the last: a scale of each row of qkv, which it is
            multiplied by and rounded to bf16 before anything else.
    """

    num_heads: int
    num_tokens: int
    per_warp: bool
    eps: float = 1e-6
    softmax_scale: float = HEAD_DIM**-0.5
    row_scaled: bool = False


class Sage2Desc(ctypes.Structure):
    """``fastwan_sage2_desc``."""

    _fields_ = (
        ("struct_bytes", ctypes.c_uint32),
        ("mode", ctypes.c_uint32),
        ("batch", ctypes.c_int32),
        ("length", ctypes.c_int32),
        ("num_tokens", ctypes.c_int32),
        ("num_heads", ctypes.c_int32),
        ("eps", ctypes.c_float),
        ("softmax_scale", ctypes.c_float),
    )


class Sage2Layout(ctypes.Structure):
    """``fastwan_sage2_layout``: byte offsets in the workspace."""

    _fields_ = (
        ("padded_tokens", ctypes.c_int64),
        ("q", ctypes.c_int64),
        ("q_scale", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("k_scale", ctypes.c_int64),
        ("v", ctypes.c_int64),
        ("inverse_norm", ctypes.c_int64),
        ("k_sum", ctypes.c_int64),
        ("v_max", ctypes.c_int64),
        ("k_mean", ctypes.c_int64),
        ("v_factor", ctypes.c_int64),
        ("v_scale", ctypes.c_int64),
        ("total", ctypes.c_int64),
    )


@dataclass(frozen=True)
class SageAttention2(AttentionRegion[Sage2Attributes, Sage2Layout]):
    """Attention with int8 logits and e4m3 values."""

    op: ClassVar[str] = "SageAttention2"
    family: ClassVar[str] = "sage2"
    halves: ClassVar[str] = "sage2"
    served: ClassVar[str] = "fastwan_sage2_device_supported"
    limit: ClassVar[float] = 1e-3
    """What an MMA adds up before it rounds to fp16, the order of fp32 sums and ``ex2.approx``."""

    @classmethod
    def from_node(cls, node: RegionNode, specs: Mapping[str, TensorSpec]) -> SageAttention2:
        shape = node_shape(node, specs)
        attributes = Sage2Attributes(
            num_heads=shape.num_heads,
            num_tokens=shape.num_tokens,
            per_warp=bool(whole(node, "per_warp", None, 0, 1)),
            eps=real(node, "eps", Sage2Attributes.eps),
            softmax_scale=real(node, "softmax_scale", Sage2Attributes.softmax_scale),
            row_scaled=bool(whole(node, "row_scaled", 0, 0, 1)),
        )
        refuse_unknown(node, {field.name for field in fields(Sage2Attributes)})
        return cls(shape.batch, shape.length, attributes)

    def new_layout(self) -> Sage2Layout:
        return Sage2Layout()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        if not self.attributes.row_scaled:
            return self.tensors
        return *self.tensors, tensor("row_scale", "float32", self.batch, self.length, 1)

    @property
    def launches(self) -> tuple[Launch, ...]:
        return (
            Launch("norms and partial sums", sum(self.statistics_traffic().values())),
            Launch("mean of K, scale of V", sum(self.reduction_traffic().values())),
            Launch("int8 and e4m3 operands", sum(self.quantisation_traffic().values())),
            Launch(
                "SageAttention2++",
                sum(self.attention_traffic().values()),
                self.operations(),
                "sage2",
            ),
        )

    @property
    def workspace_bytes(self) -> int:
        """int8 q and k, e4m3 v with room for fp16, scales, and what they are made of.

        As ``fastwan_sage2_workspace_bytes`` answers.
        """
        _, padded = self.rows()
        spans, channels = self._partials()
        parts = [
            padded * HEAD_DIM,
            self._scales()[0] * _FP32,
            padded * HEAD_DIM,
            self._scales()[1] * _FP32,
            padded * HEAD_DIM * _VALUE_BYTES,
            2 * padded // self.attributes.num_heads * _FP32,
            *[spans * channels * _FP32] * 2,
            *[channels * _FP32] * 3,
        ]
        return sum(aligned(part, _ALIGNMENT) for part in parts)

    def reference(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        from fastwan.plugins import sage2_reference

        attributes = asdict(self.attributes)
        per_warp = attributes.pop("per_warp")
        del attributes["row_scaled"]  # as the inputs say
        kinds = sage2_reference.Granularity
        granularity = kinds.WARP if per_warp else kinds.THREAD
        return (sage2_reference.attention_node(*inputs, **attributes, granularity=granularity),)

    def desc(self) -> Sage2Desc:
        attributes = self.attributes
        return Sage2Desc(
            ctypes.sizeof(Sage2Desc),
            (_PER_WARP if attributes.per_warp else _PER_THREAD)
            | (_ROW_SCALED if attributes.row_scaled else 0),
            self.batch,
            self.length,
            attributes.num_tokens,
            attributes.num_heads,
            attributes.eps,
            attributes.softmax_scale,
        )

    def _scales(self) -> tuple[int, int]:
        """Scales of q and of k."""
        _, padded = self.rows()
        queries, keys = padded // _QUERY_ROWS, padded // _KEY_TILE
        return (queries, keys) if self.attributes.per_warp else (8 * queries, 4 * keys)

    def _partials(self) -> tuple[int, int]:
        """Partial sums of a channel, and channels of the whole batch."""
        return -(-self.attributes.num_tokens // _SPAN), self.batch * self.channels

    def _qkv(self) -> dict[str, int]:
        """Bytes of qkv and the scales of its rows, which the first and the third launch read."""
        rows, _ = self.rows()
        read = {"read qkv": 3 * rows * HEAD_DIM * _BF16}
        if self.attributes.row_scaled:
            read["read scales of rows"] = self.batch * self.attributes.num_tokens * _FP32
        return read

    def statistics_traffic(self) -> dict[str, int]:
        """Bytes that the first launch moves; it reads K twice, once from the L2 cache."""
        spans, channels = self._partials()
        tokens = self.attributes.num_tokens
        return {
            **self._qkv(),
            "read RoPE tables": tokens * HEAD_DIM * _FP32,
            "read bias, norm, scales": 4 * self.channels * _BF16 + 3 * _FP32,
            "write norms": 2 * self.batch * tokens * _FP32,
            "write sums of K, maxima of V": 2 * spans * channels * _FP32,
        }

    def reduction_traffic(self) -> dict[str, int]:
        """Bytes that the second launch moves, by tensor."""
        spans, channels = self._partials()
        return {
            "read sums of K, maxima of V": 2 * spans * channels * _FP32,
            "write mean, factor, scale": 3 * channels * _FP32,
        }

    def quantisation_traffic(self) -> dict[str, int]:
        """Bytes that the third launch moves, by tensor, where V is e4m3."""
        _, padded = self.rows()
        _, channels = self._partials()
        tokens = self.attributes.num_tokens
        behind = self.batch * (self.length - tokens)
        return {
            **self._qkv(),
            "read RoPE tables": tokens * HEAD_DIM * _FP32,
            "read bias, norms, scales": 5 * self.channels * _BF16 + 3 * _FP32,
            "read norms": 2 * self.batch * tokens * _FP32,
            "read mean of K, factor of V": 2 * channels * _FP32,
            "write q, k, v": 3 * padded * HEAD_DIM,
            "write scales": sum(self._scales()) * _FP32,
            "write rows behind the tokens": behind * self.channels * _BF16,
        }

    def attention_traffic(self) -> dict[str, int]:
        """Bytes that the attention's launch moves, by tensor, where V is e4m3."""
        rows, padded = self.rows()
        return {
            "read q, k, v": 3 * padded * HEAD_DIM,
            "read scales": (sum(self._scales()) + self.batch * self.channels) * _FP32,
            "write output": rows * HEAD_DIM * _BF16,
        }
