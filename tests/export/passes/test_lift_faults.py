"""One change in the first block of the transformer: what a kernel does not compute stays there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import pytest

from fastwan.export.passes.fusions import Lift
from fastwan.export.passes.graphs import clone
from fastwan.export.passes.lift_cross_attention import lift_cross_attention
from fastwan.export.passes.lift_quantiser import lift_quantiser
from fastwan.export.passes.lift_residual_norm import lift_residual_norm

Change = Callable[[ir.Model], None]


def node(model: ir.Model, op_type: str, index: int = 0) -> ir.Node:
    """The node of that type of the first block, by its number."""
    block = [each for each in model.graph if str(each.name).startswith("blocks.0.")]
    return [each for each in block if each.op_type == op_type][index]


def reads_other(op_type: str, place: int, index: int = 0) -> Change:
    """An input of a node becomes the latents' hidden state, a value of another origin."""

    def change(model: ir.Model) -> None:
        hidden = next(v for n in model.graph for v in n.outputs if v.name == "embed.hidden")
        node(model, op_type, index).replace_input_with(place, hidden)

    return change


def swaps_otherwise(index: int) -> Change:
    def change(model: ir.Model) -> None:
        swap = node(model, "Transpose", index)
        swap.attributes["perm"] = ir.AttrInt64s("perm", [0, 1, 2, 3])

    return change


def with_mask(model: ir.Model) -> None:
    attention = node(model, "Attention")
    mask = ir.Value(name="mask", type=ir.TensorType(ir.DataType.BFLOAT16), shape=ir.Shape([1, 512]))
    model.graph.inputs.append(mask)
    attention.resize_inputs(4)
    attention.replace_input_with(3, mask)


def without_text(model: ir.Model) -> None:
    text = next(value for value in model.graph.inputs if value.name == "encoder_hidden_states")
    text.name = "another"


def narrower_gate(model: ir.Model) -> None:
    """A gate for each token, not for each channel."""
    gate = node(model, "Slice", 2).outputs[0]
    gate.shape = ir.Shape([1, 256, 1])


def transposes(model: ir.Model) -> list[str]:
    """Names of the transposes of the first block, in order."""
    block = [each for each in model.graph if str(each.name).startswith("blocks.0.")]
    return [str(each.name) for each in block if each.op_type == "Transpose"]


def count(model: ir.Model, lift: Lift) -> int:
    """Nodes that a pass puts in place."""
    before = sum(each.domain == "fastwan" for each in model.graph)
    lift(model)
    return sum(each.domain == "fastwan" for each in model.graph) - before


def head_swaps(model: ir.Model) -> list[int]:
    """Numbers of the transposes that divide or join heads."""
    return [i for i, name in enumerate(transposes(model)) if "transpose" in name.split("/")[0]]


CROSS: dict[str, tuple[Change, int]] = {
    "a mask": (with_mask, 1),
    "no prompt": (without_text, 2),
    "a square of another value": (reads_other("ReduceMean", 0, 4), 1),
}
NORM: dict[str, tuple[Change, int]] = {
    "a mean of another value": (reads_other("ReduceMean", 0, 2), 1),
    "a variance of another value": (reads_other("ReduceMean", 0, 3), 1),
    "a residual that is no GEMM": (reads_other("Add", 0, 10), 1),
    "a gate of another shape": (narrower_gate, 1),
}


def named(model: ir.Model, name: str) -> ir.Value:
    return next(v for each in model.graph for v in each.outputs if v.name == name)


def hidden_without_a_bias(model: ir.Model) -> None:
    """The first hidden state is the bare GEMM of the patches."""
    hidden = named(model, "embed.hidden")
    gemm = hidden.producer()
    assert gemm is not None
    assert gemm.inputs[0] is not None
    ir.convenience.replace_all_uses_with(hidden, gemm.inputs[0])


def last_norm_read_twice(model: ir.Model) -> None:
    """Something else than the head's linear reads the last norm."""
    linear = [each for each in model.graph if each.op_type == "MatMul"][-1]
    assert linear.inputs[0] is not None
    model.graph.outputs.append(linear.inputs[0])


def last_residual_of_another_value(model: ir.Model) -> None:
    """The last residual adds no GEMM."""
    add = [each for each in model.graph if each.op_type == "MatMul"][-2].outputs[0]
    ir.convenience.replace_all_uses_with(add, named(model, "embed.hidden"))


ENDS: dict[str, tuple[Change, str]] = {
    "a first hidden state without a bias": (hidden_without_a_bias, "NormQuantize"),
    "a last norm that is an output, too": (last_norm_read_twice, "ResidualNorm"),
    "a last residual that is no GEMM": (last_residual_of_another_value, "ResidualNorm"),
}


@pytest.mark.parametrize("fault", ENDS)
def test_another_first_or_last_norm_stays(exported: Any, fault: str) -> None:
    change, op_type = ENDS[fault]
    sound, changed = clone(exported.model()), clone(exported.model())
    change(changed)
    for model, nodes in ((sound, 1), (changed, 0)):
        lift_residual_norm(model)
        assert sum(each.op_type == op_type for each in model.graph) == nodes


@pytest.mark.parametrize("fault", CROSS)
def test_another_cross_attention_stays(exported: Any, fault: str) -> None:
    change, lost = CROSS[fault]
    sound, changed = clone(exported.model()), clone(exported.model())
    change(changed)
    assert count(changed, lift_cross_attention) == count(sound, lift_cross_attention) - lost


def test_heads_that_are_divided_otherwise_stay(exported: Any) -> None:
    sound = clone(exported.model())
    swaps = head_swaps(sound)
    assert len(swaps) == 3  # of q, of k, of the result
    whole = count(sound, lift_cross_attention)
    for index in swaps:
        changed = clone(exported.model())
        swaps_otherwise(index)(changed)
        assert count(changed, lift_cross_attention) == whole - 1


@pytest.mark.parametrize("fault", NORM)
def test_another_residual_or_norm_stays(exported: Any, fault: str) -> None:
    change, lost = NORM[fault]
    sound, changed = clone(exported.model()), clone(exported.model())
    change(changed)
    assert count(changed, lift_residual_norm) == count(sound, lift_residual_norm) - lost


def test_a_quantiser_of_an_engines_own_value_stays(exported: Any, tiny: Any) -> None:
    model = clone(exported.model())
    assert count(model, lift_quantiser) == tiny.config.num_layers
    assert count(model, lift_quantiser) == 0
