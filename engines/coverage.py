"""The gate that keeps a recipe: each targeted linear is of its format, in the graph and the engine.

TensorRT falls back to bf16 without a word when a pattern does not match, and counts of kernels
mislead because GEMMs merge. So linears are found again by the name of their ONNX node. What is
asked of a node and of a kernel is the recipe's, see `fastwan.export.recipes.Gate`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx

from fastwan.engines.layers import LayerRecord
from fastwan.errors import VerificationFailed
from fastwan.export.recipes import Fault, Gate, find_recipe
from fastwan.export.recipes.graph_index import GraphIndex
from fastwan.manifest import Linear

if TYPE_CHECKING:
    from fastwan.export.attentions import Attention

_SHOWN = 8


@dataclass(frozen=True)
class Coverage:
    """Which targeted linears an engine computes in the format of their recipe.

    Attributes:
        covered: linears whose MatMul a GEMM of that format computes.
        lost: the other targeted linears, each with what was found instead.
    """

    covered: tuple[Linear, ...]
    lost: tuple[tuple[Linear, str], ...]

    def require(self, engine: str) -> None:
        """Refuse an engine that lost a linear.

        Raises:
            VerificationFailed: names the linears.
        """
        for gate, linears in _by_gate(linear for linear, _ in self.lost).items():
            faults = [f"{x.name}: {reason}" for x, reason in self.lost if x.node in linears]
            raise _refused(faults, f"not computed by {gate.wanted}", engine, gate.fix)


def check_coverage(
    records: Iterable[LayerRecord],
    linears: Sequence[Linear],
    weight_elements: Mapping[str, int] | None = None,
) -> Coverage:
    """Match targeted linears with the GEMMs of an engine, in each of its profiles.

    A fused kernel may name the MatMul of a neighbour that really runs elsewhere. So a node named
    by a GEMM of the wanted format is covered only if no GEMM of another kind names it, and if the
    weights of the GEMMs that name it are as many as those of all linears they name.

    Args:
        records: kernels of the engine.
        linears: targeted linears; those of a recipe without a gate are not checked.
        weight_elements: by MatMul node the elements of its weight, from `check_onnx_linears`.
            Without it the second condition is left out.

    Raises:
        BadInput: nothing implements the recipe of a linear.
    """
    by_profile: dict[int, list[LayerRecord]] = {0: []}
    for record in records:
        by_profile.setdefault(record.profile, []).append(record)
    gates = _by_gate(linears)
    reasons: dict[str, str] = {}
    for profile, kernels in sorted(by_profile.items()):
        for gate, targeted in gates.items():
            for node, reason in _lost(gate, kernels, targeted, weight_elements or {}).items():
                reasons.setdefault(node, f"{reason} in profile {profile}" if profile else reason)
    claimed = [linear for linear in linears if any(linear.node in each for each in gates.values())]
    return Coverage(
        tuple(linear for linear in claimed if linear.node not in reasons),
        tuple((linear, reasons[linear.node]) for linear in claimed if linear.node in reasons),
    )


def _by_gate(linears: Iterable[Linear]) -> dict[Gate, dict[str, Linear]]:
    """The linears whose recipe has a gate, by gate and node."""
    found: dict[Gate, dict[str, Linear]] = {}
    for linear in linears:
        gate = find_recipe(linear.format).gate
        if gate is not None:
            found.setdefault(gate, {})[linear.node] = linear
    return found


def _lost(
    gate: Gate,
    records: Sequence[LayerRecord],
    targeted: Mapping[str, Linear],
    weight_elements: Mapping[str, int],
) -> dict[str, str]:
    """By MatMul node of each targeted linear that was lost, what was found instead."""
    gemms = [record for record in records if record.kind == "gemm"]
    good = [record for record in gemms if gate.computes(record)]
    others: dict[str, LayerRecord] = {}
    for record in gemms:
        if not gate.computes(record):
            others.update((node, record) for node in record.nodes if node in targeted)
    groups = _groups(good, targeted)
    lost: dict[str, str] = {}
    for node in targeted:
        group = groups.get(node)
        if node in others:
            lost[node] = f"{others[node].precision} GEMM {others[node].name}"
        elif group is None:
            lost[node] = "no GEMM names it"
        else:
            have = sum(record.operands[1].elements() for record in group.kernels)
            need = sum(weight_elements.get(name, 0) for name in group.nodes)
            if have < need:
                names = ", ".join(record.name for record in group.kernels)
                lost[node] = f"{names} holds {have} of {need} {gate.label} weights"
    return lost


@dataclass
class _Group:
    """GEMMs and the targeted nodes they name, connected by naming."""

    nodes: set[str]
    kernels: list[LayerRecord]


def _groups(kernels: Iterable[LayerRecord], targeted: Mapping[str, Linear]) -> dict[str, _Group]:
    groups: dict[str, _Group] = {}
    for kernel in kernels:
        joined = _Group({node for node in kernel.nodes if node in targeted}, [kernel])
        for node in tuple(joined.nodes):
            other = groups.get(node)
            if other is not None and not any(k is kernel for k in other.kernels):
                joined.nodes |= other.nodes
                joined.kernels += [
                    k for k in other.kernels if not any(k is j for j in joined.kernels)
                ]
        groups.update(dict.fromkeys(joined.nodes, joined))
    return groups


def check_onnx_linears(model: onnx.ModelProto, linears: Sequence[Linear]) -> dict[str, int]:
    """Check in the graph that every targeted linear has weight and activation of its recipe.

    Returns:
        Elements of the weight by MatMul node.

    Raises:
        BadInput: nothing implements the recipe of a linear.
        VerificationFailed: names each linear at fault and what was found.
    """
    index = GraphIndex(model)
    elements: dict[str, int] = {}
    for gate, targeted in _by_gate(linears).items():
        faults = []
        for node, linear in targeted.items():
            try:
                elements[node] = gate.weight_elements(index, node)
            except Fault as fault:
                faults.append(f"{linear.name}: {fault}")
        if faults:
            raise _refused(
                faults,
                f"not {gate.label} in the graph",
                model.graph.name,
                "export the checkpoint again",
            )
    return elements


def check_attention(
    attention: Attention, model: onnx.ModelProto, records: Sequence[LayerRecord]
) -> None:
    """Refuse an engine that lost what its attention is made of.

    Args:
        model: graph that the engine was built from.
        records: kernels of the engine.

    Raises:
        VerificationFailed: names the attentions.
    """
    faults = attention.faults([node.name for node in model.graph.node], records)
    if faults:
        shown = "; ".join(faults[:_SHOWN])
        raise VerificationFailed(
            f"{len(faults)} attentions not computed by {attention.wanted}: {shown}",
            where=model.graph.name,
            fix="keep its nodes as they are lowered, or build with --attention native",
        )


def _refused(faults: Sequence[str], what: str, where: str, fix: str) -> VerificationFailed:
    shown = "; ".join(faults[:_SHOWN])
    more = f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    count = f"{len(faults)} targeted linear{'s' if len(faults) > 1 else ''}"
    return VerificationFailed(f"{count} {what}: {shown}{more}", where=where, fix=fix)
