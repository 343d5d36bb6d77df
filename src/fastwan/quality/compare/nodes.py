"""Which nodes of the exported graph each kernel of a bundle computes, under names that both share.

The builder names a kernel's nodes, but also those whose operands a kernel only rearranges; an
attention is named by nodes inside its own; a region by the tensors that it writes. Here every
kernel gets the nodes of the exported graph that it computes itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from fastwan.manifest import Manifest, RegionNode
from fastwan.quality.kernels import Kernel, block_of

OPERAND = "#operand"
"""Ends the node of a kernel that only rearranges what another one multiplies."""


@dataclass(frozen=True)
class ExportedGraph:
    """Nodes of a graph as it was exported.

    Attributes:
        makers: by tensor, the name of the node that makes it.
        inputs: by node, the tensors that it reads.
    """

    makers: Mapping[str, str]
    inputs: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, model: onnx.ModelProto) -> ExportedGraph:
        """Nodes of a model."""
        nodes = model.graph.node
        return cls(
            {tensor: node.name for node in nodes for tensor in node.output},
            {node.name: tuple(node.input) for node in nodes},
        )

    def known(self, name: str) -> str:
        """The node that `name` lies in: itself, or the one that it was expanded from."""
        node = name
        while node not in self.inputs and "/" in node:
            node = node.rpartition("/")[0]
        return node if node in self.inputs else name

    def behind(
        self, outputs: Sequence[str], given: frozenset[str], others: frozenset[str]
    ) -> frozenset[str]:
        """Nodes that make `outputs` of tensors that are given, without those of others.

        Args:
            given: tensors where the search ends.
            others: nodes that somebody else computes; the search ends there, too.
        """
        found: set[str] = set()
        waiting = list(outputs)
        while waiting:
            node = self.makers.get(waiting.pop(), "")
            if node and node not in found and node not in others:
                found.add(node)
                waiting += [name for name in self.inputs[node] if name not in given]
        return frozenset(found)


def computed_nodes(
    kernels: Sequence[Kernel], manifest: Manifest, graph: ExportedGraph
) -> list[frozenset[str]]:
    """For each kernel the nodes that it computes.

    Of a node that several kernels name, the one with matrix arithmetic computes it. What a kernel
    names of another block of the transformer than its own does not count: values that depend on no
    block's input are computed wherever the builder likes. A kernel that is left without a node has
    those that it prepares operands for, marked with `OPERAND`.

    Args:
        graph: of the component that the kernels are of.
    """
    engines = [kernel for kernel in kernels if kernel.place not in manifest.regions]
    matrix = {node for k in engines if k.kind != "memory" for node in k.nodes}
    by_engines = {node.removeprefix("modulation/") for k in engines for node in k.nodes}
    of_region = _region_nodes(manifest, graph, frozenset(map(graph.known, by_engines)))
    found = []
    for kernel in kernels:
        if kernel.place in manifest.regions:
            found.append(of_region[kernel.nodes])
            continue
        own = {node for node in kernel.nodes if kernel.kind != "memory" or node not in matrix}
        own = {node for node in own if block_of([node]) in (None, kernel.block)} or own
        prepared = {f"{node}{OPERAND}" for node in kernel.nodes}
        found.append(frozenset(map(graph.known, own)) or frozenset(prepared))
    return [nodes or frozenset([k.title]) for nodes, k in zip(found, kernels, strict=True)]


def _region_nodes(
    manifest: Manifest, graph: ExportedGraph, by_engines: frozenset[str]
) -> dict[tuple[str, ...], frozenset[str]]:
    """Nodes of the exported graph behind each node that the runtime launches, by its outputs."""
    launched: list[RegionNode] = [n for each in manifest.regions.values() for n in each.nodes]
    written = frozenset(name for node in launched for name in node.outputs)
    found = {}
    for node in launched:
        given = (written - set(node.outputs)) | frozenset(node.inputs)
        found[node.outputs] = graph.behind(node.outputs, given, by_engines)
    return found
