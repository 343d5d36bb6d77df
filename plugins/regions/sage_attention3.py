"""``fastwan::SageAttention3``: everything between the qkv and the output GEMM of self-attention.

Two launches: a prologue (scale, bias, RMS norm across the heads, RoPE, quantisation to packed FP4
operands in the workspace), and FP4 attention over them. Two more follow on a GPU whose last wave of
tiles would leave most multiprocessors idle: there the keys of its tiles are divided, see
`SageAttention3.key_split`. What they compute stands in `fastwan.plugins.reference`, what they move
is derived in docs/attention-cost.md.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, get_args

from fastwan.config import TOKEN_TILE
from fastwan.manifest import RegionNode, TensorSpec
from fastwan.plugins.regions.attention import HEAD_DIM, AttentionRegion, node_shape
from fastwan.plugins.regions.base import Launch, aligned, real, refuse_unknown, whole

if TYPE_CHECKING:
    from torch import Tensor

_KIND = 1
_FLAG_EXACT_MAX = 1
_ALIGNMENT = 1024  # of each operand in the workspace (csrc/layout.h)
_BF16, _FP32 = 2, 4
Implementation = Literal["sage3", "flashinfer"]
"""Kernels of the attention, in the order of ``fastwan_attention``: fastvideo-kernel's, from
SageAttention3, and FlashInfer's."""
IMPLEMENTATIONS: tuple[Implementation, ...] = get_args(Implementation)
_DIVIDING = frozenset({"sage3"})
_MAX_PARTS, _LEAST_KEY_TILES, _MAX_SLOTS = 14, 8, 192  # csrc/key_split.h
_SLOT = (TOKEN_TILE * HEAD_DIM + 2 * TOKEN_TILE) * 4
"""Bytes that a part of the keys of one tile leaves in fp32: sums, and two figures a row."""
_PACKED = HEAD_DIM // 2 + HEAD_DIM // 16
"""Bytes of a packed row of 128 values: 64 of codes and 8 of scales."""


@dataclass(frozen=True)
class SageAttributes:
    """Attributes of the node.

    Attributes:
        num_heads: H; C = 128 H.
        num_tokens: true tokens; rows from there on are padding, never read and written as 0.
        eps: of the RMS norms.
        softmax_scale: applied to the fp32 logits.
        exact_max: start the maxima of the first key tile from minus infinity, not from 0 as the
            published kernel does.
    """

    num_heads: int
    num_tokens: int
    eps: float = 1e-6
    softmax_scale: float = HEAD_DIM**-0.5
    exact_max: bool = False


class KeySplit(NamedTuple):
    """How the tiles of 128 queries and a head share the multiprocessors of a GPU.

    Attributes:
        whole: tiles, the first ones, that see all keys in one block.
        parts: that the keys of each of the other tiles are divided into; 1 where none are.
        others: number of those.
    """

    whole: int
    parts: int
    others: int


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
        ("implementation", ctypes.c_uint32),
        ("processors", ctypes.c_int32),
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
class SageAttention3(AttentionRegion[SageAttributes, SageLayout]):
    """FP4 attention.

    Attributes:
        implementation: kernel of its attention; no property of the node, which any computes.
        processors: multiprocessors that keys are divided for (`key_split`); 0: those of the GPU
            that runs it. No attribute of the node.
    """

    op: ClassVar[str] = "SageAttention3"
    halves: ClassVar[str] = "sage"
    limit: ClassVar[float] = 2e-4
    """The order of fp32 sums and ``ex2.approx``, and ties of P that they turn."""

    implementation: Implementation = "sage3"
    processors: int = 0

    @classmethod
    def from_node(cls, node: RegionNode, specs: Mapping[str, TensorSpec]) -> SageAttention3:
        shape = node_shape(node, specs)
        attributes = SageAttributes(
            num_heads=shape.num_heads,
            num_tokens=shape.num_tokens,
            eps=real(node, "eps", SageAttributes.eps),
            softmax_scale=real(node, "softmax_scale", SageAttributes.softmax_scale),
            exact_max=bool(whole(node, "exact_max", 0, 0, 1)),
        )
        refuse_unknown(node, {field.name for field in fields(SageAttributes)})
        return cls(shape.batch, shape.length, attributes)

    def new_layout(self) -> SageLayout:
        return SageLayout()

    @property
    def alternatives(self) -> Mapping[str, SageAttention3]:
        return {name: replace(self, implementation=name) for name in IMPLEMENTATIONS}

    @property
    def launches(self) -> tuple[Launch, ...]:
        rows = self._divided_rows()
        operations = self.operations()
        of_parts = 4 * rows * self.attributes.num_tokens * HEAD_DIM
        traffic, moved = self.attention_traffic(), self.divided_traffic()
        own = Launch(
            "FP4 attention", sum(traffic.values()) - moved.get("write output", 0),
            operations - of_parts, "sage3",
        )  # fmt: skip
        launches = [Launch("prologue", sum(self.prologue_traffic().values())), own]
        if rows:
            merge = moved["read sums"] + moved["write output"]
            parts = sum(moved.values()) - merge
            launches.append(Launch("FP4 attention of divided keys", parts, of_parts, "sage3"))
            launches.append(Launch("merge of divided keys", merge))
        return tuple(launches)

    @property
    def workspace_bytes(self) -> int:
        """FP4 q, k and v with an e4m3 scale for 16 values, the fp32 additive term, divided sums.

        For tokens padded to whole tiles, as ``fastwan_region_workspace_bytes`` answers.
        """
        _, padded = self.rows()
        codes, scales = padded * HEAD_DIM // 2, padded * HEAD_DIM // 16
        parts = [codes, scales] * 3 + [padded * _FP32, self.split_bytes]
        return sum(aligned(part, _ALIGNMENT) for part in parts)

    def on(self, processors: int) -> SageAttention3:
        return replace(self, processors=processors)

    def reference(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The output; without `processors` keys are divided as on the GPU of the inputs."""
        import torch

        from fastwan.plugins import attention_reference, reference

        processors = self.processors
        if not processors and inputs[0].is_cuda:
            device = torch.cuda.get_device_properties(inputs[0].device)
            processors = device.multi_processor_count
        split = self.key_split(processors if self._divides and processors else self.tiles)
        divided = (
            attention_reference.DividedKeys(split.whole, split.parts) if split.others else None
        )
        attributes = asdict(self.attributes)
        return (reference.attention_node(*inputs, **attributes, divided=divided),)

    @property
    def _divides(self) -> bool:
        """Whether the implementation divides keys: FlashInfer's does not."""
        return self.implementation in _DIVIDING

    @property
    def split_bytes(self) -> int:
        """Workspace for the sums of divided keys, the same for every GPU."""
        return _MAX_SLOTS * _SLOT if self.key_tiles >= 2 * _LEAST_KEY_TILES else 0

    @property
    def key_tiles(self) -> int:
        """Tiles of 128 keys, and as many of queries, in a head."""
        return aligned(self.attributes.num_tokens, TOKEN_TILE) // TOKEN_TILE

    @property
    def tiles(self) -> int:
        """Tiles of 128 queries and one head; a multiprocessor takes one at a time."""
        return self.key_tiles * self.attributes.num_heads * self.batch

    def key_split(self, processors: int) -> KeySplit:
        """What the library does on a GPU of so many multiprocessors (csrc/key_split.h)."""
        rest = self.tiles % processors
        if rest == 0:
            return KeySplit(self.tiles, 1, 0)
        parts = min(
            processors // rest,
            _MAX_PARTS,
            self.key_tiles // _LEAST_KEY_TILES,
            _MAX_SLOTS // rest,
        )
        if parts < 2:
            return KeySplit(self.tiles, 1, 0)
        return KeySplit(self.tiles - rest, parts, rest)

    def parts_of(self, head: int, tile: int, processors: int) -> int:
        """Parts that the keys of a tile of 128 queries are divided into, by this implementation.

        Args:
            head: of all batches.
            tile: of the head's.
            processors: of the GPU, where the node is not launched for another number.
        """
        if not self._divides:
            return 1
        split = self.key_split(self.processors or processors or self.tiles)
        return split.parts if head * self.key_tiles + tile >= split.whole else 1

    def waves(self, processors: int, divided: bool = True) -> float:
        """Tiles that the busiest multiprocessor takes, one after the other.

        Args:
            processors: multiprocessors of the GPU.
            divided: with the keys of the last tiles divided; else as the kernel was published.

        Returns:
            Whole tiles and the largest part of one.
        """
        whole, parts, others = self.key_split(processors)
        if not divided or not others:
            return -(-self.tiles // processors)
        return whole // processors + -(-self.key_tiles // parts) / self.key_tiles

    def desc(self) -> RegionDesc:
        attributes = self.attributes
        return RegionDesc(
            ctypes.sizeof(RegionDesc),
            _KIND,
            self.batch,
            self.length,
            attributes.num_tokens,
            attributes.num_heads,
            attributes.eps,
            attributes.softmax_scale,
            _FLAG_EXACT_MAX if attributes.exact_max else 0,
            IMPLEMENTATIONS.index(self.implementation),
            self.processors,
        )

    def _divided_rows(self) -> int:
        """True rows of the tiles whose keys are divided for `processors`; 0 where those are 0."""
        whole = self.key_split(self.processors or self.tiles).whole
        begins = (TOKEN_TILE * (tile % self.key_tiles) for tile in range(whole, self.tiles))
        return sum(min(TOKEN_TILE, self.attributes.num_tokens - begin) for begin in begins)

    def prologue_traffic(self) -> dict[str, int]:
        """Bytes that the prologue's one launch moves, by tensor.

        A tensor counts once for each launch that reads or writes it in device memory. What a
        launch reads again is taken to come from the L2 cache where it fits there: K and V of one
        head are 4.7 MB at 32,760 tokens.
        """
        rows, padded = self.rows()
        tokens = self.attributes.num_tokens
        behind = self.batch * (self.length - tokens)
        return {
            "read qkv": 3 * rows * HEAD_DIM * _BF16,
            "read RoPE tables": 2 * tokens * (HEAD_DIM // 2) * _FP32,
            "read bias, norms, scales": 5 * self.channels * _BF16 + 3 * _FP32,
            "write packed q, k, v": 3 * padded * _PACKED,
            "write zero term": padded * _FP32,
            "write rows behind the tokens": behind * self.channels * _BF16,
        }

    def attention_traffic(self) -> dict[str, int]:
        """Bytes that the attention's launch moves, by tensor."""
        rows, padded = self.rows()
        return {
            "read packed q, k, v": 3 * padded * _PACKED,
            "read zero term": padded * _FP32,
            "write output": rows * HEAD_DIM * _BF16,
        }

    def divided_traffic(self) -> dict[str, int]:
        """Bytes that divided keys move beside `attention_traffic`, but for the output it counts."""
        split = self.key_split(self.processors or self.tiles)
        if not split.others:
            return {}
        heads = -(-self.tiles // self.key_tiles) - split.whole // self.key_tiles
        keys = heads * self.key_tiles * TOKEN_TILE
        sums = split.others * split.parts * _SLOT
        return {
            "read packed q of divided tiles": split.others * TOKEN_TILE * _PACKED,
            "read packed k, v of their heads": 2 * keys * _PACKED,
            "read zero term of their heads": keys * _FP32,
            "write sums": sums,
            "read sums": sums,
            "write output": self._divided_rows() * HEAD_DIM * _BF16,
        }

    def published_traffic(self) -> dict[str, int]:
        """Bytes that the published Python path moves around the same attention kernel.

        ``attn_qat_infer`` of fastvideo-kernel 0.3.5 behind FastVideo's backend, with norm and RoPE
        as one pass each; without the attention's own operands and output.
        """
        rows, padded = self.rows()
        tensor_bytes, wide = rows * HEAD_DIM * _BF16, padded * HEAD_DIM * _BF16
        unpadded = rows == padded
        tiles = padded // (self.batch * self.attributes.num_heads * TOKEN_TILE)
        delta_s = padded * tiles * _FP32
        return {
            "norm of q, k": 4 * tensor_bytes,
            "RoPE of q, k": 4 * tensor_bytes,
            "transpose q, k, v": 6 * tensor_bytes,
            "pad q, k, v": 0 if unpadded else 3 * (tensor_bytes + wide),
            "quantise q, k, v": 3 * (wide + padded * _PACKED),
            "write delta_s": delta_s,
            "read delta_s": delta_s,
            "slice output": 0 if unpadded else 2 * tensor_bytes,
            "transpose output": 2 * tensor_bytes,
        }
