"""``fastwan::NormQuantize``: layer norm, modulation and quantiser of a value without a residual."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, NamedTuple, TypeVar

from fastwan.manifest import RegionNode, TensorSpec
from fastwan.plugins.regions.base import real, refuse_unknown, tensor, whole
from fastwan.plugins.regions.glue import GlueDesc, GlueOp, shape_of
from fastwan.plugins.regions.residual_norm_quantize import ADD_ONE, PART, NormAttributes

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class NormOnlyTensors(NamedTuple, Generic[T]):
    """Inputs of the node, in its order.

    Attributes:
        x: [1, L, C] bf16.
        scale: [C] fp32.
        shift: [C] fp32.
    """

    x: T
    scale: T
    shift: T


@dataclass(frozen=True)
class NormQuantize(GlueOp):
    """One node. Outputs: the FP4 operand of the norm of x."""

    op: ClassVar[str] = "NormQuantize"
    kind: ClassVar[int] = 5
    title: ClassVar[str] = "norm and quantiser"

    rows: int
    columns: int
    attributes: NormAttributes

    @classmethod
    def from_node(cls, node: RegionNode, specs: Mapping[str, TensorSpec]) -> NormQuantize:
        refuse_unknown(node, {field.name for field in dataclasses.fields(NormAttributes)})
        add_one = bool(whole(node, "add_one", None, 0, 1))
        attributes = NormAttributes(real(node, "eps", None), add_one)
        return cls(*shape_of(node, specs, PART), attributes)

    @property
    def inputs(self) -> NormOnlyTensors[TensorSpec]:
        return NormOnlyTensors(
            x=tensor("x", "bfloat16", 1, self.rows, self.columns),
            scale=tensor("scale", "float32", self.columns),
            shift=tensor("shift", "float32", self.columns),
        )

    def reference(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        from fastwan.plugins import glue_reference

        return glue_reference.norm_quantize(*inputs, **dataclasses.asdict(self.attributes))

    def desc(self) -> GlueDesc:
        desc = super().desc()
        desc.eps = self.attributes.eps
        desc.flags = ADD_ONE * self.attributes.add_one
        return desc
