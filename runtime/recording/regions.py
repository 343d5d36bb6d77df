"""Regions of a bundle as the plugin library takes them: a row a node type."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from fastwan.bundle import RegionNode, TensorSpec
from fastwan.config import TOKEN_TILE
from fastwan.errors import BadInput
from fastwan.plugins.region import SageRegion

_HEAD_DIM = 128
_ALIGNMENT = 1024


def _sage_attention(node: RegionNode, specs: Mapping[str, TensorSpec]) -> SageRegion:
    batch, length, channels = (int(size) for size in specs[node.inputs[0]].shape)
    attributes = node.attributes
    heads = int(attributes["num_heads"])
    if channels != 3 * heads * _HEAD_DIM:
        raise BadInput(f"qkv has {channels} channels for {heads} heads", where=node.inputs[0])
    return SageRegion(
        batch=batch,
        length=length,
        num_tokens=int(attributes.get("num_tokens", length)),
        num_heads=heads,
        eps=float(attributes.get("eps", 1e-6)),
        softmax_scale=float(attributes.get("softmax_scale", _HEAD_DIM**-0.5)),
        exact_max=bool(attributes.get("exact_max", 0)),
    )


REGIONS: dict[str, Callable[[RegionNode, Mapping[str, TensorSpec]], SageRegion]] = {
    "SageAttention3": _sage_attention,
}
"""By node type."""


def region_of(node: RegionNode, specs: Mapping[str, TensorSpec]) -> SageRegion:
    """What the library has to launch for a node.

    Args:
        specs: by name, everything the region reads and writes.

    Raises:
        BadInput: a node that this version does not launch, or that does not fit its inputs.
    """
    if node.op not in REGIONS:
        raise BadInput(
            f"this version launches no {node.op}",
            where="manifest.json",
            fix="build the bundle again with this version",
        )
    missing = [name for name in (*node.inputs, *node.outputs) if name not in specs]
    if missing:
        raise BadInput(f"{node.op} reads or writes unknown {missing[0]!r}", where="manifest.json")
    return REGIONS[node.op](node, specs)


def workspace_bytes(region: SageRegion) -> int:
    """What ``fastwan_region_workspace_bytes`` answers, without the library.

    FP4 q, k and v with an e4m3 scale for 16 values, and the fp32 additive term, for tokens padded
    to whole tiles; each operand begins at a multiple of 1024 bytes (csrc/layout.h).
    """
    tokens = -(-region.num_tokens // TOKEN_TILE) * TOKEN_TILE
    rows = region.batch * region.num_heads * tokens
    packed, scales = rows * _HEAD_DIM // 2, rows * _HEAD_DIM // 16
    parts = [packed, scales] * 3 + [rows * 4]
    return sum(math.ceil(part / _ALIGNMENT) * _ALIGNMENT for part in parts)
