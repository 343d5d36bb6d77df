"""Nodes of the glue: of each kind the shapes at which a kernel's paths end."""

from __future__ import annotations

from fastwan.manifest import RegionNode, TensorSpec
from fastwan.plugins.regions.gelu_quantize import GeluQuantize
from fastwan.plugins.regions.glue import GlueOp
from fastwan.plugins.regions.quantize import Quantize

SMALL: tuple[GlueOp, ...] = (GeluQuantize(128, 256), Quantize(128, 256))
"""One of each kind, as they stand behind an attention of two heads."""

_ROWS = ((1, 16), (3, 48), (17, 240), (128, 256), (129, 8960))
"""Rows and columns: less than a block of threads, ragged ends of one, and true widths."""

BOUNDARIES: tuple[GlueOp, ...] = (
    *(GeluQuantize(rows, columns) for rows, columns in _ROWS),
    *(Quantize(rows, columns) for rows, columns in _ROWS),
)

FULL: tuple[GlueOp, ...] = (GeluQuantize(32768, 8960), Quantize(32768, 1536))
"""One of each kind as a block of 832x480x81 has it."""


def node_of(op: GlueOp, **attributes: float | int) -> tuple[RegionNode, dict[str, TensorSpec]]:
    """The manifest's record of a node, and of what it reads and writes."""
    specs = {spec.name: spec for spec in (*op.inputs, *op.outputs)}
    inputs = tuple(spec.name for spec in op.inputs)
    outputs = tuple(spec.name for spec in op.outputs)
    node = RegionNode(op=op.op, inputs=inputs, outputs=outputs, attributes=dict(attributes))
    return node, specs
