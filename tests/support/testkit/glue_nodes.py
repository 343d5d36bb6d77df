"""Nodes of the glue: of each kind the shapes at which a kernel's paths end."""

from __future__ import annotations

from typing import Any

from fastwan.manifest import RegionNode, TensorSpec
from fastwan.plugins.regions.gelu_quantize import GeluQuantize
from fastwan.plugins.regions.glue import GlueOp
from fastwan.plugins.regions.quantize import Quantize
from fastwan.plugins.regions.residual_norm_quantize import NormAttributes, ResidualNormQuantize

_ONE, _PLAIN = NormAttributes(1e-6, add_one=True), NormAttributes(1e-6, add_one=False)

SMALL: tuple[GlueOp, ...] = (
    GeluQuantize(128, 256),
    Quantize(128, 256),
    ResidualNormQuantize(128, 256, _ONE, gated=True),
)
"""One of each kind, as they stand behind an attention of two heads."""

_ROWS = ((1, 16), (3, 48), (17, 240), (128, 256), (129, 8960))
"""Rows and columns: less than a block of threads, ragged ends of one, and true widths."""

BOUNDARIES: tuple[GlueOp, ...] = (
    *(GeluQuantize(rows, columns) for rows, columns in _ROWS),
    *(Quantize(rows, columns) for rows, columns in _ROWS),
    # One row of a block, a block and a row, and both kernels: up to 12 times 128 channels and more.
    ResidualNormQuantize(1, 128, _ONE, gated=False),
    ResidualNormQuantize(9, 256, _PLAIN, gated=False),
    ResidualNormQuantize(129, 1536, _ONE, gated=True),
    ResidualNormQuantize(16, 1664, _PLAIN, gated=True),
    ResidualNormQuantize(3, 5120, _ONE, gated=True),
)

FULL: tuple[GlueOp, ...] = (
    GeluQuantize(32768, 8960),
    Quantize(32768, 1536),
    ResidualNormQuantize(32768, 1536, _ONE, gated=True),
)
"""One of each kind as a block of 832x480x81 has it."""


def node_of(op: GlueOp) -> tuple[RegionNode, dict[str, TensorSpec]]:
    """The manifest's record of a node, and of what it reads and writes."""
    attributes: dict[str, Any] = {}
    if isinstance(op, ResidualNormQuantize):
        attributes = {"eps": op.attributes.eps, "add_one": int(op.attributes.add_one)}
    specs = {spec.name: spec for spec in (*op.inputs, *op.outputs)}
    inputs = tuple(spec.name for spec in op.inputs)
    outputs = tuple(spec.name for spec in op.outputs)
    node = RegionNode(op=op.op, inputs=inputs, outputs=outputs, attributes=attributes)
    return node, specs
