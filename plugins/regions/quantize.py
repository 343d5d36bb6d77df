"""``fastwan::Quantize``: an activation as the FP4 operand of the next GEMM, in one pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, NamedTuple, TypeVar

from fastwan.manifest import RegionNode, TensorSpec
from fastwan.plugins.regions.base import refuse_unknown, tensor
from fastwan.plugins.regions.glue import GROUP, GlueOp, shape_of

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class QuantizeTensors(NamedTuple, Generic[T]):
    """Inputs of the node.

    Attributes:
        x: [1, L, C] bf16.
    """

    x: T


@dataclass(frozen=True)
class Quantize(GlueOp):
    """One node; it has no attributes."""

    op: ClassVar[str] = "Quantize"
    kind: ClassVar[int] = 2
    title: ClassVar[str] = "quantiser"

    rows: int
    columns: int

    @classmethod
    def from_node(cls, node: RegionNode, specs: Mapping[str, TensorSpec]) -> Quantize:
        refuse_unknown(node, frozenset())
        return cls(*shape_of(node, specs, GROUP))

    def reference(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        from fastwan.plugins import glue_reference

        return glue_reference.quantize(*inputs)

    @property
    def inputs(self) -> QuantizeTensors[TensorSpec]:
        return QuantizeTensors(tensor("x", "bfloat16", 1, self.rows, self.columns))
