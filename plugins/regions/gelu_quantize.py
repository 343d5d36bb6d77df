"""``fastwan::GeluQuantize``: bias, tanh GELU and quantiser between the two GEMMs of the MLP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, NamedTuple, TypeVar

from fastwan.manifest import RegionNode, TensorSpec
from fastwan.plugins.regions.base import refuse_unknown, tensor
from fastwan.plugins.regions.glue import GROUP, ScalableOp, shape_of

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class GeluTensors(NamedTuple, Generic[T]):
    """Inputs of the node, in its order.

    Attributes:
        y: [1, L, F] bf16, raw output of the GEMM.
        bias: [F] bf16.
    """

    y: T
    bias: T


@dataclass(frozen=True)
class GeluQuantize(ScalableOp):
    """One node; it has no attributes."""

    op: ClassVar[str] = "GeluQuantize"
    kind: ClassVar[int] = 1
    title: ClassVar[str] = "GELU and quantiser"

    rows: int
    columns: int
    scaled: bool = False

    @classmethod
    def unscaled(cls, node: RegionNode, specs: Mapping[str, TensorSpec]) -> GeluQuantize:
        refuse_unknown(node, frozenset())
        return cls(*shape_of(node, specs, GROUP))

    def compute(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        from fastwan.plugins import glue_reference

        return glue_reference.gelu_quantize(*inputs)

    @property
    def tensors(self) -> GeluTensors[TensorSpec]:
        return GeluTensors(
            y=tensor("y", "bfloat16", 1, self.rows, self.columns),
            bias=tensor("bias", "bfloat16", self.columns),
        )
