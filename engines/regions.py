"""Manifest records of what the runtime launches between two engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from fastwan.errors import BadInput
from fastwan.export.passes.cut_at_regions import Region as RegionGraph
from fastwan.manifest import Engine, Region, RegionNode, TensorSpec
from fastwan.plugins.regions import REGIONS
from fastwan.tables import known


def region_records(
    regions: Sequence[RegionGraph], engines: Mapping[str, Engine]
) -> dict[str, Region]:
    """Manifest records of the regions between the ``dit`` engines.

    Args:
        regions: in the order in which they run.

    Raises:
        BadInput: a region reads a value that no engine and no region before it makes, or the
            runtime launches no such node.
    """
    after = {spec.name: name for name, engine in engines.items() for spec in engine.outputs}
    order = list(engines)
    records = {}
    for region in regions:
        graph = region.model.graph
        for value in graph.inputs:
            if value.name not in after:
                raise BadInput(f"no engine makes {value.name!r}", where=region.name)
        handed_on = set(graph.outputs)
        inside = [v for node in graph for v in node.outputs if v not in handed_on]
        records[region.name] = Region(
            component="dit",
            after=max((after[str(value.name)] for value in graph.inputs), key=order.index),
            nodes=tuple(region_node(node) for node in graph),
            inputs=tuple(map(tensor_spec, graph.inputs)),
            constants=tuple(
                tensor_spec(graph.initializers[name]) for name in sorted(graph.initializers)
            ),
            outputs=tuple(map(tensor_spec, graph.outputs)),
            temporaries=tuple(map(tensor_spec, inside)),
        )
        after |= {spec.name: records[region.name].after for spec in records[region.name].outputs}
    return records


def region_node(node: ir.Node) -> RegionNode:
    """The manifest's record of a node of the domain ``fastwan``.

    Raises:
        BadInput: the runtime launches no such node.
    """
    return RegionNode(
        op=known(REGIONS, node.op_type, "kind of region"),
        inputs=tuple(str(value.name) for value in node.inputs if value is not None),
        outputs=tuple(str(value.name) for value in node.outputs),
        attributes={name: attribute.value for name, attribute in sorted(node.attributes.items())},
    )


def tensor_spec(value: ir.Value) -> TensorSpec:
    """A tensor as the project's kernels take it: 4-bit codes are bytes, two codes in each."""
    if value.dtype is None or value.shape is None or not value.shape.is_static():
        raise BadInput(f"{value.name!r} has no fixed type and shape", where="region")
    shape = tuple(value.shape.numpy())
    if value.dtype == ir.DataType.FLOAT4E2M1:
        return TensorSpec(name=str(value.name), dtype="uint8", shape=(*shape[:-1], shape[-1] // 2))
    return TensorSpec(name=str(value.name), dtype=value.dtype.numpy().name, shape=shape)
