"""The gate that keeps FP4: every targeted linear must be an FP4 GEMM, in the graph and the engine.

TensorRT falls back to bf16 without a word when a pattern does not match, and counts of kernels
mislead because GEMMs merge. So linears are found again by the name of their ONNX node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from fastwan.bundle import Linear
from fastwan.engines.layers import FP4, LayerRecord
from fastwan.errors import VerificationFailed

BLOCK = 16
QUANTISE = ("trt", "TRT_FP4DynamicQuantize")
_KEEPS_FP4 = {"Cast", "Transpose"}
_SHOWN = 8


@dataclass(frozen=True)
class Coverage:
    """Which targeted linears an engine computes in FP4.

    Attributes:
        covered: linears whose MatMul an FP4 GEMM computes.
        lost: the other targeted linears, each with what was found instead.
    """

    covered: tuple[Linear, ...]
    lost: tuple[tuple[Linear, str], ...]

    def require(self, engine: str) -> None:
        """Refuse an engine that lost FP4.

        Raises:
            VerificationFailed: names the linears.
        """
        if self.lost:
            raise _refused(
                [f"{linear.name}: {reason}" for linear, reason in self.lost],
                "not computed by an FP4 GEMM",
                engine,
                "keep DequantizeLinear, Cast, Transpose and MatMul adjacent in the graph",
            )


def is_fp4_gemm(record: LayerRecord) -> bool:
    """Whether a kernel multiplies two FP4 operands.

    A kernel that quantises, moves scales or unpacks a weight names the MatMul too and touches FP4
    tensors, but is no GEMM of two of them.
    """
    return record.kind == "gemm" and [t.dtype for t in record.operands] == [FP4, FP4]


def check_coverage(
    records: Iterable[LayerRecord],
    linears: Sequence[Linear],
    weight_elements: Mapping[str, int] | None = None,
) -> Coverage:
    """Match targeted linears with the FP4 GEMMs of an engine, in each of its profiles.

    A fused kernel may name the MatMul of a neighbour that really runs elsewhere. So a node named
    by an FP4 GEMM is covered only if no GEMM of another kind names it, and if the FP4 weights of
    the GEMMs that name it are as many as those of all linears they name.

    Args:
        records: kernels of the engine.
        linears: targeted linears; those that are not ``nvfp4`` are nobody's claim.
        weight_elements: by MatMul node the elements of its weight, from `check_onnx_linears`.
            Without it the second condition is left out.
    """
    by_profile: dict[int, list[LayerRecord]] = {0: []}
    for record in records:
        by_profile.setdefault(record.profile, []).append(record)
    targeted = {linear.node: linear for linear in linears if linear.format == "nvfp4"}
    reasons: dict[str, str] = {}
    for profile, kernels in sorted(by_profile.items()):
        for node, reason in _lost(kernels, targeted, weight_elements or {}).items():
            reasons.setdefault(node, f"{reason} in profile {profile}" if profile else reason)
    return Coverage(
        tuple(linear for node, linear in targeted.items() if node not in reasons),
        tuple((linear, reasons[node]) for node, linear in targeted.items() if node in reasons),
    )


def _lost(
    records: Sequence[LayerRecord],
    targeted: Mapping[str, Linear],
    weight_elements: Mapping[str, int],
) -> dict[str, str]:
    """By MatMul node of each targeted linear that no FP4 GEMM computes what was found instead."""
    gemms = [record for record in records if record.kind == "gemm"]
    fp4 = [record for record in gemms if is_fp4_gemm(record)]
    others: dict[str, LayerRecord] = {}
    for record in gemms:
        if not is_fp4_gemm(record):
            others.update((node, record) for node in record.nodes if node in targeted)
    groups = _groups(fp4, targeted)
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
                lost[node] = f"{names} holds {have} of {need} FP4 weights"
    return lost


@dataclass
class _Group:
    """FP4 GEMMs and the targeted nodes they name, connected by naming."""

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
    """Check in the graph that every targeted linear has an FP4 weight and an FP4 activation.

    The pattern is ``MatMul(x, w)`` with ``w = Transpose(Cast(DequantizeLinear(FLOAT4E2M1
    initializer, DequantizeLinear(e4m3 initializer, fp32 initializer))))`` and ``x`` dequantised
    likewise from both outputs of one ``trt::TRT_FP4DynamicQuantize``.

    Returns:
        Elements of the weight by MatMul node.

    Raises:
        VerificationFailed: names each linear at fault and what was found.
    """
    index = _Index(model)
    elements: dict[str, int] = {}
    faults = []
    for linear in linears:
        if linear.format != "nvfp4":
            continue
        try:
            elements[linear.node] = index.check(linear.node)
        except _Fault as fault:
            faults.append(f"{linear.name}: {fault}")
    if faults:
        raise _refused(
            faults, "not FP4 in the graph", model.graph.name, "export the checkpoint again"
        )
    return elements


def _refused(faults: Sequence[str], what: str, where: str, fix: str) -> VerificationFailed:
    shown = "; ".join(faults[:_SHOWN])
    more = f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    count = f"{len(faults)} targeted linear{'s' if len(faults) > 1 else ''}"
    return VerificationFailed(f"{count} {what}: {shown}{more}", where=where, fix=fix)


class _Fault(Exception):
    pass


class _Index:
    """Producers and initializers of a graph by value name."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.producers = {out: node for node in model.graph.node for out in node.output if out}
        self.initializers: dict[str, TensorProto] = {
            tensor.name: tensor for tensor in model.graph.initializer
        }
        self.nodes: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            self.nodes.setdefault(node.name, []).append(node)

    def check(self, name: str) -> int:
        """Elements of the FP4 weight of a MatMul, after both its operands were found FP4."""
        nodes = self.nodes.get(name, [])
        if len(nodes) != 1 or nodes[0].op_type != "MatMul" or len(nodes[0].input) != 2:
            raise _Fault(f"there is no single MatMul node {name}")
        activation, weight = nodes[0].input
        values, scale = self._dequantised(weight, "weight")
        packed = self._initializer(values, TensorProto.FLOAT4E2M1, "weight")
        block_scale, global_scale = self._scale_inputs(scale, "weight")
        self._initializer(block_scale, TensorProto.FLOAT8E4M3FN, "weight's block scale")
        self._initializer(global_scale, TensorProto.FLOAT, "weight's global scale")

        values, scale = self._dequantised(activation, "activation")
        quantise = self.producers.get(values)
        if quantise is None or (quantise.domain, quantise.op_type) != QUANTISE:
            raise _Fault("its activation is not quantised in this graph")
        block_scale, _ = self._scale_inputs(scale, "activation")
        if [values, block_scale] != list(quantise.output):
            raise _Fault("its activation is dequantised with the scale of another")
        elements = 1
        for size in packed.dims:
            elements *= size
        return elements

    def _dequantised(self, value: str, role: str) -> tuple[str, str]:
        """(values, scale) of the blockwise DequantizeLinear that `value` comes from."""
        node = self.producers.get(value)
        for _ in range(len(_KEEPS_FP4)):
            if node is None or node.op_type not in _KEEPS_FP4:
                break
            node = self.producers.get(node.input[0])
        if node is None or node.op_type != "DequantizeLinear":
            if node is None:
                raise _Fault(f"its {role} is not dequantised in this graph")
            raise _Fault(f"{node.op_type} stands between its {role} and the MatMul")
        attributes = {a.name: a.i for a in node.attribute}
        if attributes.get("block_size") != BLOCK or attributes.get("axis", 1) != -1:
            raise _Fault(f"its {role} is not scaled in blocks of {BLOCK} along the last axis")
        return node.input[0], node.input[1]

    def _scale_inputs(self, value: str, role: str) -> tuple[str, str]:
        node = self.producers.get(value)
        if node is None or node.op_type != "DequantizeLinear" or len(node.input) < 2:
            raise _Fault(f"the block scales of its {role} have no global scale")
        return node.input[0], node.input[1]

    def _initializer(self, name: str, dtype: int, role: str) -> TensorProto:
        tensor = self.initializers.get(name)
        if tensor is None:
            raise _Fault(f"its {role} is no initializer")
        if tensor.data_type != dtype:
            found, wanted = (TensorProto.DataType.Name(t) for t in (tensor.data_type, dtype))
            raise _Fault(f"its {role} is {found}, not {wanted}")
        return tensor
