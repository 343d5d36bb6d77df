"""Nodes of the glue: of each kind the shapes at which a kernel's paths end."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastwan.manifest import RegionNode, TensorSpec
from fastwan.plugins.regions.cross_attention import CrossAttention, CrossAttributes
from fastwan.plugins.regions.gelu_quantize import GeluQuantize
from fastwan.plugins.regions.glue import GlueOp, ScalableOp
from fastwan.plugins.regions.norm_quantize import NormQuantize
from fastwan.plugins.regions.quantize import Quantize
from fastwan.plugins.regions.residual_norm import ResidualNorm
from fastwan.plugins.regions.residual_norm_quantize import NormAttributes, ResidualNormQuantize

_TWO, _TWELVE = CrossAttributes(2, 1e-6, 128**-0.5), CrossAttributes(12, 1e-6, 128**-0.5)
_ONE, _PLAIN = NormAttributes(1e-6, add_one=True), NormAttributes(1e-6, add_one=False)

SMALL: tuple[GlueOp, ...] = (
    GeluQuantize(128, 256),
    Quantize(128, 256),
    ResidualNormQuantize(128, 256, _ONE, gated=True),
    NormQuantize(128, 256, _ONE),
    ResidualNorm(128, 256, _ONE, gated=True),
    CrossAttention(128, 256, 128, _TWO),
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
    NormQuantize(1, 128, _ONE),
    NormQuantize(129, 1536, _PLAIN),
    NormQuantize(3, 1664, _ONE),
    ResidualNorm(1, 128, _PLAIN, gated=False),
    ResidualNorm(129, 1536, _ONE, gated=True),
    ResidualNorm(3, 1664, _ONE, gated=True),
    # Rows of a warp, and of a block of eight; one tile of keys, and more of them than are read.
    CrossAttention(1, 128, 64, CrossAttributes(1, 1e-6, 128**-0.5)),
    CrossAttention(17, 256, 192, _TWO),
    CrossAttention(130, 256, 512, _TWO),
    CrossAttention(16, 1536, 128, _TWELVE),
    # With a factor of the product.
    GeluQuantize(17, 240, scaled=True),
    ResidualNormQuantize(9, 256, _PLAIN, gated=False, scaled=True),
    ResidualNormQuantize(16, 1664, _ONE, gated=True, scaled=True),
    ResidualNorm(9, 256, _PLAIN, gated=False, scaled=True),
    ResidualNorm(16, 1664, _ONE, gated=True, scaled=True),
    CrossAttention(17, 256, 192, _TWO, scaled=True),
)

FULL: tuple[GlueOp, ...] = (
    GeluQuantize(32768, 8960),
    Quantize(32768, 1536),
    ResidualNormQuantize(32768, 1536, _ONE, gated=True),
    NormQuantize(32768, 1536, _ONE),
    ResidualNorm(32768, 1536, _ONE, gated=True),
    CrossAttention(32768, 1536, 512, _TWELVE),
)
"""One of each kind as a block of 832x480x81 has it."""


def node_of(op: GlueOp) -> tuple[RegionNode, dict[str, TensorSpec]]:
    """The manifest's record of a node, and of what it reads and writes."""
    attributes: dict[str, Any] = {}
    if isinstance(op, ResidualNormQuantize | NormQuantize):
        attributes = {"eps": op.attributes.eps, "add_one": int(op.attributes.add_one)}
    specs = {spec.name: spec for spec in (*op.inputs, *op.outputs)}
    if isinstance(op, CrossAttention):
        attributes = asdict(op.attributes)
    if isinstance(op, ScalableOp) and op.scaled:
        attributes["scaled"] = 1
    inputs = tuple(spec.name for spec in op.inputs)
    outputs = tuple(spec.name for spec in op.outputs)
    node = RegionNode(op=op.op, inputs=inputs, outputs=outputs, attributes=attributes)
    return node, specs


def factors_of(op: GlueOp) -> list[float]:
    """Factors of a node's values, from none to the largest for which its reference is defined.

    At 1e38 the sum of a row, which a norm needs, is no number, and codes of NaN are not defined.
    """
    normed = isinstance(op, ResidualNormQuantize | NormQuantize)
    return [0.0, 1e-40, 1e-38, 1e-30, 3e-3, 1.0, 3e3, 1e18, 1e30, *([] if normed else [1e38])]
