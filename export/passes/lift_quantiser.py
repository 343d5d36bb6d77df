"""Lift the quantiser behind the attention out of the engine after it."""

from __future__ import annotations

import onnx_ir as ir

from fastwan.export.passes.graphs import FASTWAN
from fastwan.export.passes.lifting import lift, quantisers

QUANTIZE = "Quantize"


def lift_quantiser(model: ir.Model) -> tuple[ir.Model, bool]:
    """Replace the quantiser of a result of the domain ``fastwan`` by ``fastwan::Quantize``.

    Requires: the quantiser's global scale is 1.
    Ensures: the new node's outputs are the quantiser's, by their names, and it joins the region of
    the node before it.

    Args:
        model: changed in place.
    """
    changed = False
    for quantise in quantisers(model):
        x = quantise.inputs[0]
        before = None if x is None else x.producer()
        if x is None or before is None or before.domain != FASTWAN:
            continue
        lift(model, quantise, QUANTIZE, [x], quantise.outputs, {})
        changed = True
    return model, changed
