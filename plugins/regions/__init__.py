"""Kinds of regions: nodes that the runtime launches itself between two engines. A row a kind."""

from __future__ import annotations

from collections.abc import Mapping

from fastwan.errors import BadInput
from fastwan.manifest import RegionNode, TensorSpec
from fastwan.plugins.regions.base import Launch, RegionOp
from fastwan.plugins.regions.cross_attention import CrossAttention
from fastwan.plugins.regions.gelu_quantize import GeluQuantize
from fastwan.plugins.regions.norm_quantize import NormQuantize
from fastwan.plugins.regions.quantize import Quantize
from fastwan.plugins.regions.residual_norm import ResidualNorm
from fastwan.plugins.regions.residual_norm_quantize import ResidualNormQuantize
from fastwan.plugins.regions.sage_attention2 import SageAttention2
from fastwan.plugins.regions.sage_attention3 import SageAttention3

__all__ = ["REGIONS", "Launch", "RegionOp", "region_op"]

REGIONS: dict[str, type[RegionOp]] = {
    kind.op: kind
    for kind in (
        SageAttention3,
        SageAttention2,
        GeluQuantize,
        Quantize,
        ResidualNormQuantize,
        NormQuantize,
        ResidualNorm,
        CrossAttention,
    )
}
"""By node type."""


def region_op(node: RegionNode, specs: Mapping[str, TensorSpec]) -> RegionOp:
    """What the plugin library has to launch for a node.

    Args:
        specs: by name, everything that the node reads and writes.

    Raises:
        BadInput: a node that this version does not launch, or that does not fit its tensors.
    """
    kind = REGIONS.get(node.op)
    if kind is None:
        raise BadInput(
            f"this version launches no {node.op}, only {', '.join(REGIONS)}",
            where="manifest.json",
            fix="build the bundle again with this version",
        )
    missing = [name for name in (*node.inputs, *node.outputs) if name not in specs]
    if missing:
        raise BadInput(f"{node.op} reads or writes unknown {missing[0]!r}", where="manifest.json")
    made = kind.from_node(node, specs)
    for names, wanted in ((node.inputs, made.inputs), (node.outputs, made.outputs)):
        found = [(specs[name].dtype, specs[name].shape) for name in names]
        if found != [(spec.dtype, spec.shape) for spec in wanted]:
            raise BadInput(
                f"{node.op} takes {_shown(wanted)}, the region has "
                f"{_shown([specs[name] for name in names])}",
                where="manifest.json",
                fix="build the bundle again",
            )
    return made


def _shown(specs: tuple[TensorSpec, ...] | list[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in specs)
