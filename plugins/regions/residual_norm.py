"""``fastwan::ResidualNorm``: bias, gated residual, layer norm and modulation, in bf16."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fastwan.manifest import TensorSpec
from fastwan.plugins.regions.base import tensor
from fastwan.plugins.regions.residual_norm_quantize import ResidualNormQuantize

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ResidualNorm(ResidualNormQuantize):
    """One node, before a GEMM that is not FP4. Output: the modulated norm [1, L, C] bf16.

    Inputs and attributes are those of `ResidualNormQuantize`. The hidden state is not written.
    """

    op: ClassVar[str] = "ResidualNorm"
    kind: ClassVar[int] = 6
    title: ClassVar[str] = "residual and norm"

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (tensor("normed", "bfloat16", 1, self.rows, self.columns),)

    def compute(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        from fastwan.plugins import glue_reference

        numbers = dataclasses.asdict(self.attributes)
        return (glue_reference.residual_norm(*self.given(inputs), **numbers),)
