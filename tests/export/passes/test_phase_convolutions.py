"""Upsampling and two convolutions, divided by the parity of rows and columns: the same values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from fastwan.export.passes.phase_convolutions import (
    PHASES,
    first_filters,
    phase_convolutions,
    second_filters,
)

RANDOM = np.random.default_rng(11)
IMAGES, INPUTS, MIDDLE, OUTPUTS, H, W = 2, 4, 5, 3, 6, 7


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape)


def test_phases_of_the_first_filter_see_what_the_upsampled_image_has() -> None:
    x, weight = torch.from_numpy(normal(1, INPUTS, H, W)), normal(MIDDLE, INPUTS, 3, 3)
    upsampled = F.interpolate(x, scale_factor=2, mode="nearest")
    expected = F.conv2d(upsampled, torch.from_numpy(weight), padding=1)
    for (p, q), filters in first_filters(weight).items():
        padded = F.pad(x, (1 - q, q, 1 - p, p))
        got = F.conv2d(padded, torch.from_numpy(filters))
        torch.testing.assert_close(got, expected[:, :, p::2, q::2])


def test_shares_of_the_second_filter_sum_to_the_interleaved_image() -> None:
    y, weight = torch.from_numpy(normal(1, MIDDLE, 2 * H, 2 * W)), normal(OUTPUTS, MIDDLE, 3, 3)
    expected = F.conv2d(y, torch.from_numpy(weight), padding=1)
    total = sum(
        F.conv2d(F.pad(y[:, :, p::2, q::2], (q, 1 - q, p, 1 - p)), torch.from_numpy(filters))
        for (p, q), filters in second_filters(weight).items()
    )
    assert isinstance(total, torch.Tensor)
    for index, (p, q) in enumerate(PHASES):
        share = total[:, index * OUTPUTS : (index + 1) * OUTPUTS]
        torch.testing.assert_close(share, expected[:, :, p::2, q::2])


def model(
    *, growth: int = 1, bias: bool = True, change: Callable[[onnx.GraphProto], None] | None = None
) -> ir.Model:
    """The pattern in fp64, which the reference evaluator sums exactly enough."""
    weights = {
        "first.weight": normal(MIDDLE, INPUTS, 3, 3),
        "second.weight": normal(OUTPUTS, MIDDLE, 3, 3),
        "scales": np.array([1, 1, 2, 2], np.float32),
    }
    if bias:
        weights |= {"first.bias": normal(MIDDLE), "second.bias": normal(OUTPUTS)}
    nodes, source = [], "x"
    if growth > 1:
        weights["grow"] = normal(growth * INPUTS, INPUTS, 1, 1)
        weights["images"] = np.array([IMAGES * growth, INPUTS, H, W])
        nodes += [
            helper.make_node("Conv", ["x", "grow"], ["grown"], "grow"),
            helper.make_node("Reshape", ["grown", "images"], ["apart"], "apart"),
        ]
        source = "apart"
    pads = [1, 1, 1, 1]
    nodes += [
        helper.make_node("Resize", [source, "", "scales"], ["large"], "resize", mode="nearest",
                         nearest_mode="floor", coordinate_transformation_mode="asymmetric"),
        helper.make_node("Conv", ["large", "first.weight", *["first.bias"] * bias], ["a"], "first",
                         pads=pads),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "second.weight", *["second.bias"] * bias], ["c"], "second",
                         pads=pads),
        helper.make_node("Neg", ["c"], ["y"], "after"),
    ]  # fmt: skip
    kind = TensorProto.DOUBLE
    shape = [IMAGES * growth, OUTPUTS, 2 * H, 2 * W]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, [IMAGES, INPUTS, H, W])],
        [helper.make_tensor_value_info("y", kind, shape)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
        value_info=[
            helper.make_tensor_value_info("c", kind, shape),
            helper.make_tensor_value_info("grown", kind, [IMAGES, growth * INPUTS, H, W]),
            helper.make_tensor_value_info("apart", kind, [IMAGES * growth, INPUTS, H, W]),
        ],
    )
    if change is not None:
        change(graph)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))


def run(graph: ir.Model, x: np.ndarray) -> np.ndarray:
    return np.asarray(ReferenceEvaluator(ir.to_proto(graph)).run(None, {"x": x})[0])


@pytest.mark.parametrize("growth", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_the_divided_graph_computes_the_same(growth: int, bias: bool) -> None:
    graph, x = model(growth=growth, bias=bias), normal(IMAGES, INPUTS, H, W)
    expected = run(graph, x)
    graph, changed = phase_convolutions(graph)
    onnx.checker.check_model(ir.to_proto(graph))
    assert changed
    np.testing.assert_allclose(run(graph, x), expected, rtol=1e-12, atol=1e-12)
    kinds = [node.op_type for node in graph.graph]
    assert "Resize" not in kinds
    assert kinds.count("Conv") == 8
    assert [node.name for node in graph.graph if not str(node.name).startswith("second/")] == [
        "after"
    ]
    assert phase_convolutions(graph)[1] is False


def attribute(node: str, name: str, value: Any) -> Callable[[onnx.GraphProto], None]:
    def change(graph: onnx.GraphProto) -> None:
        (found,) = (each for each in graph.node if each.name == node)
        kept = [each for each in found.attribute if each.name != name]
        del found.attribute[:]
        found.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def read_elsewhere(graph: onnx.GraphProto) -> None:
    graph.output.append(helper.make_tensor_value_info("b", TensorProto.DOUBLE, None))


@pytest.mark.parametrize(
    "change",
    [
        attribute("first", "pads", [0, 1, 1, 1]),
        attribute("second", "strides", [2, 2]),
        attribute("second", "dilations", [2, 2]),
        attribute("resize", "mode", "linear"),
        read_elsewhere,
    ],
)
def test_another_pattern_stays(change: Callable[[onnx.GraphProto], None]) -> None:
    graph = model(change=change)
    before = ir.to_proto(graph).SerializeToString(deterministic=True)
    graph, changed = phase_convolutions(graph)
    assert not changed
    assert ir.to_proto(graph).SerializeToString(deterministic=True) == before


def test_growth_with_a_bias_stays_in_front() -> None:
    def change(graph: onnx.GraphProto) -> None:
        graph.initializer.append(numpy_helper.from_array(normal(2 * INPUTS), "grow.bias"))
        graph.node[0].input.append("grow.bias")

    graph, x = model(growth=2, change=change), normal(IMAGES, INPUTS, H, W)
    expected = run(graph, x)
    graph, changed = phase_convolutions(graph)
    assert changed
    assert [node.name for node in graph.graph][:2] == ["grow", "apart"]
    np.testing.assert_allclose(run(graph, x), expected, rtol=1e-12, atol=1e-12)
