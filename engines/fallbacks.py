"""What the builder's own kernels compute in place of a node that was lifted out of the engines.

The project's kernels for these nodes rest on what was inferred of the target until it has run
them. So a bundle holds one small engine for each distinct lifted node: the operators that it
replaced, without weights, fed with the same tensors. The runtime compares the two and can play
either.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from fastwan.engines.plan import serialized
from fastwan.engines.regions import region_node, tensor_spec
from fastwan.engines.source import EngineSource
from fastwan.export.passes.cut_at_regions import Region as RegionGraph
from fastwan.export.passes.graphs import FASTWAN
from fastwan.export.passes.lifting import REPLACED
from fastwan.manifest import Engine, Fallback, RegionNode, TensorSpec
from fastwan.plugins.regions import RegionOp, region_op

_PREFIX = "fallback"


@dataclass(frozen=True)
class FallbackSource:
    """A distinct lifted node and what it replaced.

    Attributes:
        node: with the names that its kind of region calls inputs and outputs by.
        tensors: all that it reads and writes, under these names.
        engine: of the operators in its place; inputs that they do not read are left out.
    """

    node: RegionNode
    tensors: tuple[TensorSpec, ...]
    engine: EngineSource

    def record(self, engine: Engine) -> Fallback:
        """What the manifest says of it.

        Args:
            engine: built from `engine`.
        """
        return Fallback(
            node=self.node, tensors=self.tensors, graph=graph_file(self.engine), engine=engine
        )


def graph_file(source: EngineSource) -> str:
    """Where a bundle keeps the graph of a fallback's engine."""
    return f"{source.component}/{source.name}.onnx"


def fallback_sources(regions: Sequence[RegionGraph], base_dir: Path) -> tuple[FallbackSource, ...]:
    """A source for each distinct lifted node: of a kind, with its shapes and attributes.

    Nodes that were in the graph from the start replaced nothing and have none.

    Args:
        regions: in the order in which they run.
        base_dir: folder of the ONNX bundle.
    """
    found: dict[RegionOp, FallbackSource] = {}
    counts: dict[str, int] = {}
    for node in _lifted(regions):
        specs = {spec.name: spec for spec in map(tensor_spec, _values(node))}
        made = region_op(region_node(node), specs)
        if made in found:
            continue
        index = counts[node.op_type] = counts.get(node.op_type, -1) + 1
        name = f"{_PREFIX}_{_snake_case(node.op_type)}_{index}"
        found[made] = _source(node, made, name, base_dir)
    return tuple(found.values())


def fallback_records(
    sources: Sequence[FallbackSource], engines: Mapping[str, Engine]
) -> dict[str, Fallback]:
    """Manifest records by the name of the engine."""
    return {each.engine.name: each.record(engines[each.engine.name]) for each in sources}


def _lifted(regions: Sequence[RegionGraph]) -> Iterator[ir.Node]:
    for region in regions:
        yield from (node for node in region.model.graph if REPLACED in node.meta)


def _values(node: ir.Node) -> Iterator[ir.Value]:
    yield from (value for value in (*node.inputs, *node.outputs) if value is not None)


def _source(node: ir.Node, made: RegionOp, name: str, base_dir: Path) -> FallbackSource:
    model: ir.Model = node.meta[REPLACED]
    graph = model.graph
    for values, specs in ((graph.inputs, made.inputs), (graph.outputs, made.outputs)):
        for value, spec in zip(values, specs, strict=True):
            value.name = spec.name
    graph.name = name
    graph.opset_imports.pop(FASTWAN, None)
    read = [value for value in graph.inputs if value.uses()]
    graph.inputs.clear()
    graph.inputs.extend(read)
    record = region_node(node)
    return FallbackSource(
        RegionNode(
            op=record.op,
            inputs=tuple(spec.name for spec in made.inputs),
            outputs=tuple(spec.name for spec in made.outputs),
            attributes=record.attributes,
        ),
        (*made.inputs, *made.outputs),
        EngineSource(name, "dit", serialized(model), base_dir, "step"),
    )


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
