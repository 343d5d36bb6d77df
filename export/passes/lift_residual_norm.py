"""Lift residual, norm and quantiser between two linears, or two of the three, into one node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from fastwan.export.passes.graphs import chain, constant, copy_node, insert_before, producer
from fastwan.export.passes.hoist import AT_HOME
from fastwan.export.passes.lifting import (
    lift,
    quantisers,
    read_once,
    scalar,
    with_vector,
)
from fastwan.plugins.lifted import MODULATION, vector_name

RESIDUAL_NORM_QUANTIZE = "ResidualNormQuantize"
NORM_QUANTIZE = "NormQuantize"
RESIDUAL_NORM = "ResidualNorm"
_COPIED = {"Add", "Cast", "Slice", "Unsqueeze"}


@dataclass(frozen=True)
class _Norm:
    """``layer_norm(hidden) * scale + shift``; the scale is 1 plus a value where `add_one`."""

    hidden: ir.Value
    scale: ir.Value
    shift: ir.Value
    eps: float
    add_one: bool


@dataclass(frozen=True)
class _Residual:
    """``hidden + (y + bias) * gate``; None for no gate."""

    y: ir.Value
    bias: ir.Value
    hidden: ir.Value
    gate: ir.Value | None


def lift_residual_norm(model: ir.Model) -> tuple[ir.Model, bool]:
    """Replace bias, gate, residual, layer norm and quantiser by ``fastwan::ResidualNormQuantize``.

    The node has inputs y (raw output of a GEMM), bias, hidden, gate, scale and shift; one without a
    gate has five. Attributes eps and add_one. Its outputs are the new hidden state and those of the
    quantiser, by their names. What a timestep decides of gate, scale and shift is computed by nodes
    of other names, which `split_dit` hoists with the tables of the timestep.

    A norm without a residual before it, that of the first block, becomes ``fastwan::NormQuantize``:
    inputs x, scale and shift, outputs those of the quantiser. A norm with a residual whose reader
    is a linear without a quantiser, that of the head, becomes ``fastwan::ResidualNorm``: inputs of
    the first node, output the norm in bf16.

    Requires: norm and residual as they are traced; the quantiser's global scale is 1.
    Ensures: the same values.

    Args:
        model: changed in place.
    """
    changed = False
    copies: dict[ir.Value, ir.Value] = {}
    for quantise in quantisers(model):
        norm = _norm(quantise.inputs[0])
        residual = _residual(norm.hidden) if norm is not None else None
        if norm is None:
            continue
        if residual is not None:
            op_type, outputs = RESIDUAL_NORM_QUANTIZE, [norm.hidden, *quantise.outputs]
        elif _is_embedding(norm.hidden):
            op_type, outputs = NORM_QUANTIZE, list(quantise.outputs)
        else:
            continue
        changed |= _lift(model, quantise, op_type, norm, residual, outputs, copies)
    for anchor in [node for node in model.graph if node.op_type == "Cast"]:
        value = anchor.outputs[0]
        norm = _norm(value) if _read_by_a_gemm(value) else None
        residual = _residual(norm.hidden) if norm is not None else None
        if norm is not None and residual is not None:
            changed |= _lift(model, anchor, RESIDUAL_NORM, norm, residual, [value], copies)
    return model, changed


def _lift(
    model: ir.Model,
    anchor: ir.Node,
    op_type: str,
    norm: _Norm,
    residual: _Residual | None,
    outputs: list[ir.Value],
    copies: dict[ir.Value, ir.Value],
) -> bool:
    """Put one node in place; False where a timestep alone does not decide its modulation."""
    gate = [] if residual is None or residual.gate is None else [residual.gate]
    small = [*gate, norm.scale, norm.shift]
    if not all(_of_timestep(value) for value in small):
        return False
    vectors = [_vector(model.graph, anchor, value, copies) for value in small]
    first = [norm.hidden] if residual is None else [residual.y, residual.bias, residual.hidden]
    attributes: Mapping[str, int | float] = {"eps": norm.eps, "add_one": int(norm.add_one)}
    reads = [*first, *small]
    lift(model, anchor, op_type, [*first, *vectors], outputs, attributes, reads)
    return True


def _is_embedding(value: ir.Value) -> bool:
    """Whether a value is a GEMM and its bias, as the hidden state of the first block."""
    found = with_vector(producer(value, "Add"))
    return found is not None and _is_gemm(found[0])


def _read_by_a_gemm(value: ir.Value) -> bool:
    """Whether one GEMM, and nothing else, reads a value."""
    return read_once(value) and all(use.node.op_type == "MatMul" for use in value.uses())


def _pair(node: ir.Node | None) -> tuple[tuple[ir.Value, ir.Value], ...]:
    """The two inputs of an operator, in both orders."""
    if node is None or len(node.inputs) != 2:
        return ()
    left, right = node.inputs
    return () if left is None or right is None else ((left, right), (right, left))


def _norm(value: ir.Value | None) -> _Norm | None:
    found = chain(value, "Cast", "Add")
    for scaled, shift in _pair(found[1] if found else None):
        for normed, factor in _pair(producer(scaled, "Mul")):
            hidden, eps = _layer_norm(normed)
            if hidden is None or eps is None:
                continue
            scale = _one_plus(factor)
            return _Norm(hidden, scale or factor, shift, eps, scale is not None)
    return None


def _one_plus(value: ir.Value) -> ir.Value | None:
    for other, one in _pair(producer(value, "Add")):
        if scalar(one) == 1:
            return other
    return None


def _layer_norm(value: ir.Value) -> tuple[ir.Value | None, float | None]:
    """(bf16 value, eps) of a layer norm without weights whose result `value` is."""
    for centred, factor in _pair(producer(value, "Mul")):
        subtracted = producer(centred, "Sub")
        inverse = chain(factor, "Reciprocal", "Sqrt", "Add", "ReduceMean", "Mul")
        if subtracted is None or inverse is None:
            continue
        wide, mean = subtracted.inputs
        averaged, cast = producer(mean, "ReduceMean"), producer(wide, "Cast")
        if averaged is None or cast is None or averaged.inputs[0] is not wide:
            continue
        if all(each is centred for each in inverse[-1].inputs):
            return cast.inputs[0], scalar(inverse[2].inputs[1])
    return None, None


def _residual(value: ir.Value) -> _Residual | None:
    sides = _pair(producer(value, "Add"))
    for branch, hidden in sides:
        gated = chain(branch, "Cast", "Mul")
        for wide, gate in _pair(gated[1] if gated else None):
            cast = producer(wide, "Cast")
            found = with_vector(producer(cast.inputs[0], "Add")) if cast is not None else None
            if found is not None and _is_gemm(found[0]):
                return _Residual(*found, hidden, gate)
    # Without a gate last: the hidden state of the first block is a GEMM and its bias, too.
    for branch, hidden in sides:
        found = with_vector(producer(branch, "Add"))
        if found is not None and _is_gemm(found[0]):
            return _Residual(*found, hidden, None)
    return None


def _is_gemm(value: ir.Value) -> bool:
    return producer(value, "MatMul") is not None


def _at_home(value: ir.Value) -> ir.Node | None:
    """The node of a block or the head that makes `value`; None for what is made elsewhere."""
    node = value.producer()
    return node if node is not None and str(node.name).startswith(AT_HOME) else None


def _of_timestep(value: ir.Value) -> bool:
    """Whether a value is one of fp32 by channel, of a table's rows or a table alone."""
    if value.dtype != ir.DataType.FLOAT or value.shape is None:
        return False
    if any(size != 1 for size in value.shape.numpy()[:-1]):
        return False
    waiting = [value]
    while waiting:
        node = _at_home(waiting.pop())
        if node is None:
            continue
        if node.op_type not in _COPIED:
            return False
        waiting += [each for each in node.inputs if each is not None]
    return True


def _vector(
    graph: ir.Graph, anchor: ir.Node, value: ir.Value, copies: dict[ir.Value, ir.Value]
) -> ir.Value:
    """`value` [.., C] as [C], made outside its block; nodes are added before `anchor` once."""
    assert value.shape is not None
    if value.is_initializer() and len(value.shape) == 1:
        return value
    channels = int(value.shape.numpy()[-1])
    source = _copied(anchor, value, copies)
    shape = constant(graph, f"{MODULATION}channels_{channels}", ir.tensor(np.array([channels])))
    node = ir.node("Reshape", [source, shape], name=vector_name(str(value.name)))
    result = node.outputs[0]
    result.name = str(node.name)
    result.type, result.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([channels])
    insert_before(anchor, [node])
    return result


def _copied(anchor: ir.Node, value: ir.Value, copies: dict[ir.Value, ir.Value]) -> ir.Value:
    node = _at_home(value)
    if node is None:
        return value
    if value not in copies:
        inputs = [each for each in node.inputs if each is not None]
        values = {each: _copied(anchor, each, copies) for each in inputs}
        insert_before(anchor, [copy_node(node, values, f"{MODULATION}{node.name}", MODULATION)])
        copies[value] = values[node.outputs[0]]
    return copies[value]
