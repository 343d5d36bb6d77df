"""Divide the transformer by how often its parts have to run."""

from __future__ import annotations

import onnx_ir as ir

from fastwan.export.passes.hoist import hoist
from fastwan.plugins.lifted import TEXT

TIMESTEP = "timestep"


def split_dit(model: ir.Model) -> dict[str, ir.Model]:
    """The graphs of a generation: ``time_tables``, ``text_kv`` and ``dit``.

    ``time_tables`` has what a timestep alone decides (its embedding and projection, 33 MB of
    weights at full width) and runs once a bundle for each timestep of the schedule; ``text_kv``
    has the keys and values of the cross-attentions and runs once a prompt; ``dit`` is the rest and
    runs once a step.

    Requires: inputs `TIMESTEP` and `TEXT`, and what `hoist` requires.
    Ensures: see `hoist`.

    Args:
        model: as ``dit.onnx`` holds it; left unchanged.

    Raises:
        BadInput: one of the inputs is missing.
    """
    time, rest = hoist(model, TIMESTEP, "time_tables")
    text, dit = hoist(rest, TEXT, "text_kv")
    return {"time_tables": time, "text_kv": text, "dit": dit}
