"""Recipe ``bf16``: linears as they are in the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastwan.export.recipes.base import WEIGHT, Recipe

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class BF16(Recipe):
    """Weights and activations in the model's own dtype."""

    name: str = "bf16"

    @property
    def gate(self) -> None:
        return None

    def convert(self, weight: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        return {WEIGHT: weight.to(dtype)}

    def reference(self, weight: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        return self.convert(weight, dtype)

    def merge(self, parts: Sequence[Mapping[str, Tensor]]) -> tuple[dict[str, Tensor], Tensor]:
        import torch

        return {WEIGHT: torch.cat([part[WEIGHT] for part in parts])}, torch.ones(len(parts))

    def buffers(self, inputs: int, outputs: int, dtype: torch.dtype) -> dict[str, Tensor]:
        import torch

        return {WEIGHT: torch.empty(outputs, inputs, dtype=dtype)}

    def multiply(
        self,
        x: Tensor,
        stored: Mapping[str, Tensor],
        *,
        quantize_activation: bool,
        tokens: int | None = None,
    ) -> Tensor:
        import torch

        return torch.matmul(x, stored[WEIGHT].t())

    def expand(self, model: ir.Model) -> tuple[ir.Model, bool]:
        return model, False

    def lower(self, model: ir.Model, *, quantize_activations: bool) -> bool:
        return False
