"""What the kinds of attention share: inputs, output and sizes of the node."""

from __future__ import annotations

import ctypes
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Generic, NamedTuple, Protocol, TypeVar

from fastwan.config import TOKEN_TILE
from fastwan.errors import BadInput
from fastwan.manifest import RegionNode, TensorSpec
from fastwan.plugins.regions.base import RegionOp, aligned, dims, tensor, whole

T = TypeVar("T")

HEAD_DIM = 128
MAX_HEADS = 1 << 10


class SageTensors(NamedTuple, Generic[T]):
    """Inputs of the node, in its order.

    Attributes:
        qkv: [B, L, 3C] bf16, raw output of the merged GEMM; L >= num_tokens.
        qkv_scale: [3] fp32, one for each third.
        qkv_bias: [3C] bf16.
        q_norm: [C] bf16.
        k_norm: [C] bf16.
        rope_cos: [L, 64] fp32.
        rope_sin: [L, 64] fp32.
    """

    qkv: T
    qkv_scale: T
    qkv_bias: T
    q_norm: T
    k_norm: T
    rope_cos: T
    rope_sin: T


class Heads(Protocol):
    """What every kind of attention has among its attributes."""

    @property
    def num_heads(self) -> int: ...

    @property
    def num_tokens(self) -> int: ...


A = TypeVar("A", bound=Heads)
L = TypeVar("L", bound=ctypes.Structure)


class NodeShape(NamedTuple):
    """Sizes of a node.

    Attributes:
        batch: B.
        length: L.
        num_heads: H.
        num_tokens: true tokens, L where the node does not say.
    """

    batch: int
    length: int
    num_heads: int
    num_tokens: int


def node_shape(node: RegionNode, specs: Mapping[str, TensorSpec]) -> NodeShape:
    """Sizes of a node, by its attributes and the shape of qkv.

    Raises:
        BadInput: qkv is not [B, L, 3C] of the node's heads, or the node has more tokens than rows.
    """
    heads = whole(node, "num_heads", None, 1, MAX_HEADS)
    shape = dims(specs[node.inputs[0]]) if node.inputs else ()
    if len(shape) != 3 or shape[2] != 3 * heads * HEAD_DIM:
        raise BadInput(
            f"qkv has shape {list(shape)}, not [B, L, {3 * heads * HEAD_DIM}] of {heads} heads",
            where=node.inputs[0] if node.inputs else "manifest.json",
        )
    return NodeShape(shape[0], shape[1], heads, whole(node, "num_tokens", shape[1], 1, shape[1]))


@dataclass(frozen=True)
class AttentionRegion(RegionOp, Generic[A, L]):
    """One node: its batch B, rows L and attributes. Output: [B, L, C] bf16."""

    halves: ClassVar[str]
    """Part of the C interface for its halves: ``fastwan_<halves>_layout_of``,
    ``.._prologue_enqueue``, which writes operands to the workspace, ``.._attention_enqueue``."""

    batch: int
    length: int
    attributes: A

    @abstractmethod
    def new_layout(self) -> L:
        """The structure that says where the operands lie in the workspace, not filled in."""

    @property
    def channels(self) -> int:
        """C."""
        return self.attributes.num_heads * HEAD_DIM

    @property
    def tensors(self) -> SageTensors[TensorSpec]:
        """The inputs that every kind has."""
        channels, bf16, fp32 = self.channels, "bfloat16", "float32"
        return SageTensors(
            qkv=tensor("qkv", bf16, self.batch, self.length, 3 * channels),
            qkv_scale=tensor("qkv_scale", fp32, 3),
            qkv_bias=tensor("qkv_bias", bf16, 3 * channels),
            q_norm=tensor("q_norm", bf16, channels),
            k_norm=tensor("k_norm", bf16, channels),
            rope_cos=tensor("rope_cos", fp32, self.length, HEAD_DIM // 2),
            rope_sin=tensor("rope_sin", fp32, self.length, HEAD_DIM // 2),
        )

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.tensors

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (tensor("out", "bfloat16", self.batch, self.length, self.channels),)

    @property
    def true_rows(self) -> int:
        return self.attributes.num_tokens

    def operations(self) -> int:
        """Multiplications and additions of QK^T and PV over the true tokens."""
        rows, _ = self.rows()
        return 4 * rows * self.attributes.num_tokens * HEAD_DIM

    def rows(self) -> tuple[int, int]:
        """Rows of 128 values of one of q, k, v: true ones, and padded to whole tiles."""
        heads, tokens = self.batch * self.attributes.num_heads, self.attributes.num_tokens
        return heads * tokens, heads * aligned(tokens, TOKEN_TILE)

    def __str__(self) -> str:
        return f"attention of {self.attributes.num_tokens} tokens"
