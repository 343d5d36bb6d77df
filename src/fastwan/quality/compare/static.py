"""Kernels of two bundles matched by the ONNX nodes that they compute."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastwan.bundle import Bundle
from fastwan.errors import BadInput
from fastwan.onnx_guard import bundle_graph
from fastwan.quality.compare.nodes import ExportedGraph, computed_nodes
from fastwan.quality.compare.report import (
    ComponentChange,
    KernelFact,
    KernelGroup,
    StaticComparison,
    Status,
)
from fastwan.quality.cost import Cost
from fastwan.quality.inspection import milliseconds
from fastwan.quality.kernels import Kernel, bundle_kernels, by_block
from fastwan.quality.report import inspect_bundle


@dataclass(frozen=True)
class Side:
    """One of the two bundles."""

    bundle: Bundle
    kernels: Sequence[Kernel]
    nodes: Sequence[frozenset[str]]

    @classmethod
    def of(cls, bundle: Bundle) -> Side:
        """Kernels of a bundle with the nodes that they compute.

        Raises:
            BadInput: malformed records or graphs.
            VerificationFailed: a file differs from its hash.
        """
        kernels = bundle_kernels(bundle)
        found: dict[int, frozenset[str]] = {}
        for component in dict.fromkeys(kernel.component for kernel in kernels):
            record = bundle.manifest.onnx.graphs.get(component)
            if record is None:
                raise BadInput(f"no graph of the component {component}", where="manifest.json")
            graph = ExportedGraph.of(bundle_graph(bundle, record.file, record.data).model)
            own = [kernel for kernel in kernels if kernel.component == component]
            computed = computed_nodes(own, bundle.manifest, graph)
            found |= {id(kernel): nodes for kernel, nodes in zip(own, computed, strict=True)}
        return cls(bundle, kernels, [found[id(kernel)] for kernel in kernels])


def compare_static(left: Side, right: Side) -> StaticComparison:
    """Match the kernels of two bundles, and compare their components."""
    groups = match(left, right)
    counted: dict[str, int] = {
        name: sum(group.status == name for group in groups) for name in _ORDER
    }
    costs = by_block(left.kernels), by_block(right.kernels)
    blocks = sorted(costs[0].keys() | costs[1].keys())
    return StaticComparison(
        components=_components(left, right),
        counts=counted,
        groups=tuple(group for group in groups if group.status != "same"),
        block_bytes=tuple(
            (_moved(costs[0].get(each)), _moved(costs[1].get(each))) for each in blocks
        ),
    )


_ORDER: tuple[Status, ...] = ("same", "changed", "fused differently", "gone", "added")


def match(a: Side, b: Side) -> list[KernelGroup]:
    """Groups of kernels that compute the same nodes, in the order of the first bundle's."""
    groups = _Groups()
    for side in (a, b):
        for kernel, nodes in zip(side.kernels, side.nodes, strict=True):
            groups.join(kernel.component, nodes)
    members: dict[tuple[str, str], tuple[list[Kernel], list[Kernel]]] = {}
    shared: dict[tuple[str, str], set[str]] = {}
    for index, side in enumerate((a, b)):
        for kernel, nodes in zip(side.kernels, side.nodes, strict=True):
            key = groups.of(kernel.component, min(nodes))
            members.setdefault(key, ([], []))[index].append(kernel)
            shared.setdefault(key, set()).update(nodes)
    return [
        KernelGroup(
            status=_status(left, right),
            component=(left or right)[0].component,
            block=(left or right)[0].block,
            nodes=tuple(sorted(shared[key], key=lambda name: ("/MatMul" not in name, name))),
            a=tuple(map(_fact, left)),
            b=tuple(map(_fact, right)),
        )
        for key, (left, right) in members.items()
    ]


class _Groups:
    """Nodes that some kernel of either bundle computes together."""

    def __init__(self) -> None:
        self._parents: dict[tuple[str, str], tuple[str, str]] = {}

    def of(self, component: str, node: str) -> tuple[str, str]:
        """What stands for the group of a node."""
        key = (component, node)
        self._parents.setdefault(key, key)
        while self._parents[key] != key:
            self._parents[key] = self._parents[self._parents[key]]
            key = self._parents[key]
        return key

    def join(self, component: str, nodes: Iterable[str]) -> None:
        """Put nodes into one group."""
        first, *rest = sorted(nodes)
        for node in rest:
            self._parents[self.of(component, node)] = self.of(component, first)
        self.of(component, first)


def _status(a: Sequence[Kernel], b: Sequence[Kernel]) -> Status:
    if not a:
        return "added"
    if not b:
        return "gone"
    if len(a) != len(b):
        return "fused differently"
    facts = [
        sorted((k.kind, k.dtype, k.cost.bytes_moved, k.cost.flops) for k in each) for each in (a, b)
    ]
    return "same" if facts[0] == facts[1] else "changed"


def _moved(cost: Cost | None) -> int | None:
    return None if cost is None else cost.bytes_moved


def _fact(kernel: Kernel) -> KernelFact:
    return KernelFact(
        name=kernel.title,
        place=kernel.place,
        kind=kernel.kind,
        dtype=kernel.dtype,
        bytes_moved=kernel.cost.bytes_moved,
        predicted_ms=milliseconds(kernel.cost.seconds),
    )


def _components(a: Side, b: Side) -> dict[str, ComponentChange]:
    found = [inspect_bundle(side.bundle).components for side in (a, b)]
    engines: list[list[str]] = [
        [engine.component for engine in side.bundle.manifest.engines.values()] for side in (a, b)
    ]
    return {
        name: ComponentChange(
            engines=(engines[0].count(name), engines[1].count(name)),
            a=found[0].get(name),
            b=found[1].get(name),
        )
        for name in dict.fromkeys((*found[0], *found[1]))
    }
