"""Attention ``sage3``: SageAttention3, scores and values in FP4, by the project's own kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fastwan.export.attentions.base import Attention, Division, Form
from fastwan.plugins import reference

if TYPE_CHECKING:
    import onnx_ir as ir


def _fp4(qkv: Tensor, *others: Tensor, **attributes: Any) -> Tensor:
    """The tile-exact reference of the kernel."""
    return reference.attention_node(qkv, *others, **attributes).to(qkv.dtype)


FP4 = Form("fp4", _fp4)


@dataclass(frozen=True)
class Sage3(Attention):
    """The node stays what it is: inside the engine, or between two engines as a region."""

    name: str = "sage3"
    uses_library = True
    reference = FP4

    def divide(self, dit: ir.Model, *, plugins: bool) -> Division:
        from fastwan.export.passes.cut_at_regions import cut_at_regions

        if plugins:
            return Division((dit,))
        cut = cut_at_regions(dit)
        return Division(cut.segments, cut.regions)
