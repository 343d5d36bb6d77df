"""Attention ``sage2``: SageAttention2++, scores in int8 and values in FP8, by our own kernels.

Scales are those of a thread on every GPU: they are never coarser than those of a warp, which the
published kernel has on compute capability 12.x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fastwan.export.attentions.base import Attention, Division, Form
from fastwan.plugins import sage2_reference

if TYPE_CHECKING:
    import onnx_ir as ir


def _int8(qkv: Tensor, *others: Tensor, exact_max: bool = False, **attributes: Any) -> Tensor:
    """The tile-exact reference of the kernel; it has no choice of the first maxima."""
    granularity = sage2_reference.Granularity.THREAD
    node = sage2_reference.attention_node
    return node(qkv, *others, granularity=granularity, **attributes).to(qkv.dtype)


INT8 = Form("int8", _int8)


@dataclass(frozen=True)
class Sage2(Attention):
    """The node becomes ``fastwan::SageAttention2``: in the engine, or a region between two."""

    name: str = "sage2"
    uses_library = True
    takes_row_scales = True
    reference = INT8

    def divide(self, dit: ir.Model, *, plugins: bool) -> Division:
        from fastwan.export.passes.cut_at_regions import cut_at_regions

        own = _replaced(dit)
        if plugins:
            return Division((own,))
        cut = cut_at_regions(own)
        return Division(cut.segments, cut.regions)


def _replaced(dit: ir.Model) -> ir.Model:
    """A copy of the graph with the other node in place of each attention."""
    import onnx_ir as ir

    from fastwan.export.passes.graphs import FASTWAN, clone
    from fastwan.export.schemas import register, sage_attention2

    register(sage_attention2())
    model = clone(dit)
    for node in model.graph:
        if node.domain == FASTWAN and node.op_type == "SageAttention3":
            node.op_type = "SageAttention2"
            del node.attributes["exact_max"]
            node.attributes["per_warp"] = ir.AttrInt64("per_warp", 0)
    return model
