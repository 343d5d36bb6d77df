"""``fastwan::ResidualNormQuantize``: bias, gated residual, layer norm, modulation and quantiser."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, Self, TypeVar

from fastwan.errors import BadInput
from fastwan.manifest import RegionNode, TensorSpec
from fastwan.plugins.regions.base import real, refuse_unknown, tensor, whole
from fastwan.plugins.regions.glue import GlueDesc, ScalableOp, shape_of

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

PART = 128
"""C is a multiple of it: what a warp holds in one go."""
ADD_ONE, _GATE = 1, 2
"""Flags of ``csrc/glue.h``."""


class NormTensors(NamedTuple, Generic[T]):
    """Inputs of the node, in its order.

    Attributes:
        y: [1, L, C] bf16, raw output of the GEMM.
        bias: [C] bf16.
        hidden: [1, L, C] bf16, the residual.
        gate: [C] fp32; a node without one has five inputs.
        scale: [C] fp32.
        shift: [C] fp32.
    """

    y: T
    bias: T
    hidden: T
    gate: T | None
    scale: T
    shift: T


@dataclass(frozen=True)
class NormAttributes:
    """Attributes of the node.

    Attributes:
        eps: of the layer norm.
        add_one: multiply the norm by ``1 + scale``, not by ``scale``.
    """

    eps: float
    add_one: bool


@dataclass(frozen=True)
class ResidualNormQuantize(ScalableOp):
    """One node. Outputs: hidden [1, L, C] bf16, and the FP4 operand of its norm.

    Attributes:
        gated: there is a gate.
    """

    op: ClassVar[str] = "ResidualNormQuantize"
    kind: ClassVar[int] = 3
    title: ClassVar[str] = "residual, norm and quantiser"

    rows: int
    columns: int
    attributes: NormAttributes
    gated: bool
    scaled: bool = False

    @classmethod
    def unscaled(cls, node: RegionNode, specs: Mapping[str, TensorSpec]) -> Self:
        refuse_unknown(node, {field.name for field in dataclasses.fields(NormAttributes)})
        if len(node.inputs) not in (5, 6):
            raise BadInput(
                f"{cls.op} has {len(node.inputs)} inputs, not 6, or 5 without a gate",
                where="manifest.json",
                fix="build the bundle again",
            )
        add_one = bool(whole(node, "add_one", None, 0, 1))
        attributes = NormAttributes(real(node, "eps", None), add_one)
        return cls(*shape_of(node, specs, PART), attributes, gated=len(node.inputs) == 6)

    @property
    def tensors(self) -> NormTensors[TensorSpec]:
        """Inputs by name."""
        row, columns = (1, self.rows, self.columns), self.columns
        return NormTensors(
            y=tensor("y", "bfloat16", *row),
            bias=tensor("bias", "bfloat16", columns),
            hidden=tensor("hidden", "bfloat16", *row),
            gate=tensor("gate", "float32", columns) if self.gated else None,
            scale=tensor("scale", "float32", columns),
            shift=tensor("shift", "float32", columns),
        )

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        hidden = tensor("hidden_out", "bfloat16", 1, self.rows, self.columns)
        return (hidden, *self.quantized)

    def compute(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        from fastwan.plugins import glue_reference

        numbers = dataclasses.asdict(self.attributes)
        return glue_reference.residual_norm_quantize(*self.given(inputs), **numbers)

    def given(self, inputs: Sequence[Tensor]) -> NormTensors[Any]:
        """The node's inputs by name, with None for the gate of a node without one."""
        left = iter(inputs)
        return NormTensors(*(None if spec is None else next(left) for spec in self.tensors))

    def desc(self) -> GlueDesc:
        desc = super().desc()
        desc.eps = self.attributes.eps
        desc.flags |= ADD_ONE * self.attributes.add_one | _GATE * self.gated
        return desc
