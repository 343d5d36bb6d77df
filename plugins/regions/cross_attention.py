"""``fastwan::CrossAttention``: bias, norm, attention to the prompt's keys, and quantiser."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, NamedTuple, TypeVar

from fastwan.errors import BadInput
from fastwan.manifest import RegionNode, TensorSpec
from fastwan.plugins.regions.base import Launch, dims, real, refuse_unknown, tensor, whole
from fastwan.plugins.regions.glue import GlueDesc, ScalableOp, shape_of

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

HEAD_DIM = 128
MAX_HEADS = 40
KEY_TILE = 64
"""Keys that ``key_tiles`` counts as one."""
USUAL_KEYS = 192
"""Keys that are read for a prompt of 128 tokens: one more for the padding, in whole tiles."""


class CrossTensors(NamedTuple, Generic[T]):
    """Inputs of the node, in its order.

    Attributes:
        y: [1, L, C] bf16, raw output of the query GEMM.
        bias: [C] bf16.
        norm_weight: [C] bf16.
        k: [1, Lk, C] bf16, Lk a multiple of 64.
        v: [1, H, Lk, 128] bf16.
        key_bias: [Lk] fp32, added to the logits.
        key_tiles: [1] int32, tiles of 64 keys that are read.
    """

    y: T
    bias: T
    norm_weight: T
    k: T
    v: T
    key_bias: T
    key_tiles: T


@dataclass(frozen=True)
class CrossAttributes:
    """Attributes of the node.

    Attributes:
        num_heads: H; C = 128 H.
        eps: of the RMS norm.
        scale: of the logits.
    """

    num_heads: int
    eps: float
    scale: float


@dataclass(frozen=True)
class CrossAttention(ScalableOp):
    """One node.

    Attributes:
        keys: Lk, the most keys of a prompt.
    """

    op: ClassVar[str] = "CrossAttention"
    kind: ClassVar[int] = 4
    title: ClassVar[str] = "cross-attention"
    limit: ClassVar[float] = 0.01
    """Now and then another order of fp32 sums moves a value over a tie."""

    rows: int
    columns: int
    keys: int
    attributes: CrossAttributes
    scaled: bool = False

    @classmethod
    def unscaled(cls, node: RegionNode, specs: Mapping[str, TensorSpec]) -> CrossAttention:
        refuse_unknown(node, {field.name for field in dataclasses.fields(CrossAttributes)})
        heads = whole(node, "num_heads", None, 1, MAX_HEADS)
        attributes = CrossAttributes(heads, real(node, "eps", None), real(node, "scale", None))
        rows, columns = shape_of(node, specs, HEAD_DIM)
        shape = dims(specs[node.inputs[3]]) if len(node.inputs) == 7 else ()
        if columns != heads * HEAD_DIM or len(shape) != 3 or shape[1] % KEY_TILE:
            raise BadInput(
                f"{cls.op} of {heads} heads has {len(node.inputs)} inputs, {columns} columns and "
                f"keys {list(shape)}, not 7, {heads * HEAD_DIM} and [1, Lk, C] with Lk a multiple "
                f"of {KEY_TILE}",
                where="manifest.json",
                fix="build the bundle again",
            )
        return cls(rows, columns, shape[1], attributes)

    def compute(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        from fastwan.plugins import glue_reference

        return glue_reference.cross_attention(*inputs, **dataclasses.asdict(self.attributes))

    @property
    def tensors(self) -> CrossTensors[TensorSpec]:
        columns, keys, heads = self.columns, self.keys, self.attributes.num_heads
        return CrossTensors(
            y=tensor("y", "bfloat16", 1, self.rows, columns),
            bias=tensor("bias", "bfloat16", columns),
            norm_weight=tensor("norm_weight", "bfloat16", columns),
            k=tensor("k", "bfloat16", 1, keys, columns),
            v=tensor("v", "bfloat16", 1, heads, keys, HEAD_DIM),
            key_bias=tensor("key_bias", "float32", keys),
            key_tiles=tensor("key_tiles", "int32", 1),
        )

    @property
    def keys_read(self) -> int:
        """Keys that a usual prompt has; how many are read is only known on the device."""
        return min(self.keys, USUAL_KEYS)

    @property
    def traffic(self) -> dict[str, int]:
        moved = super().traffic
        few = {f"read {name}" for name in ("k", "v", "key_bias")}
        return {
            name: size * self.keys_read // self.keys if name in few else size
            for name, size in moved.items()
        }

    @property
    def launches(self) -> tuple[Launch, ...]:
        operations = 4 * self.rows * self.columns * self.keys_read
        return (Launch(self.title, sum(self.traffic.values()), operations, "native"),)

    def __str__(self) -> str:
        return f"{super().__str__()} to at most {self.keys} keys"

    def desc(self) -> GlueDesc:
        desc = super().desc()
        desc.keys = self.keys
        desc.eps = self.attributes.eps
        desc.softmax_scale = self.attributes.scale
        return desc
