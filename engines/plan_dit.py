"""From one ``dit.onnx`` to the graphs that are built into engines, by attention mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from fastwan.bundle import Linear
from fastwan.config import AttentionName, BackendName
from fastwan.export.passes.cut_at_blocks import cut_every
from fastwan.export.passes.cut_at_regions import Region, cut_at_regions
from fastwan.export.passes.graphs import FASTWAN, clone, nbytes
from fastwan.export.passes.lower_attention import lower_attention
from fastwan.export.passes.split_dit import split_dit
from fastwan.export.passes.split_statistics import split_statistics

NATIVE_BLOCKS = 1
"""Blocks in an engine where nothing else divides the transformer. More of them save a norm's pass
over the hidden state (101 MB), and cost 131 MB of scratch and memory at build time."""

SINGLE_ENGINE_BYTES = 1 << 20
"""Hidden state up to which native attention is one engine; a larger one is worth dividing for."""


@dataclass(frozen=True)
class GraphPart:
    """A graph to build one engine from, with the targeted linears in it."""

    name: str
    model: ir.Model
    linears: tuple[Linear, ...]


@dataclass(frozen=True)
class DitPlan:
    """Engines in the order in which they run, and the regions between the segments."""

    parts: tuple[GraphPart, ...]
    regions: tuple[Region, ...]


def plan_dit(
    model: ir.Model,
    linears: Sequence[Linear],
    *,
    attention: AttentionName,
    backend: BackendName,
) -> DitPlan:
    """Divide the transformer's graph for a backend and an attention mode.

    What a timestep alone (``time_tables``) and the prompt alone (``text_kv``) decide are engines of
    their own in every mode, see `split_dit`. The rest is one engine (``dit``) with the plugin
    (`tensorrt`) or with native attention (one a block where the hidden state is large), or the
    segments between the attention nodes where the backend has no plugins.

    Args:
        model: as ``dit.onnx`` holds it; left unchanged.
        linears: all targeted linears of the graph.
    """
    apart = split_dit(model)
    dit = apart.pop("dit")
    regions: tuple[Region, ...] = ()
    if attention == "native":
        lowered = lower_attention(clone(dit), "native")[0]
        small = _hidden_bytes(dit) <= SINGLE_ENGINE_BYTES
        models = [lowered] if small else list(cut_every(lowered, NATIVE_BLOCKS))
    elif backend == "tensorrt":
        models = [dit]
    else:
        cut = cut_at_regions(dit)
        models, regions = list(cut.segments), cut.regions
    for part in models:
        split_statistics(part)
    parts = []
    for part in (*apart.values(), *models):
        nodes = {node.name for node in part.graph}
        inside = tuple(linear for linear in linears if linear.node in nodes)
        parts.append(GraphPart(str(part.graph.name), part, inside))
    return DitPlan(tuple(parts), regions)


def _hidden_bytes(dit: ir.Model) -> int:
    """Bytes of the hidden state, which every attention node's output has the size of."""
    nodes = (node for node in dit.graph if node.domain == FASTWAN)
    return max((nbytes(node.outputs[0]) for node in nodes), default=0)
