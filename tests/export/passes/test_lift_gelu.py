"""`lift_gelu` on small graphs and on the transformer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from fastwan.export.passes.graphs import clone
from fastwan.export.passes.lift_gelu import lift_gelu

GRAPH = """g (bfloat16[1, 4, 32] y, bfloat16[32] bias, float one)
     => (float4e2m1[1, 4, 32] codes, float8e4m3fn[1, 4, 2] scales)
   <bfloat16[1, 4, 32] h, float[1, 4, 32] w, float[1, 4, 32] g, bfloat16[1, 4, 32] x>
{
    h = Add (y, bias)
    w = Cast <to: int = 1> (h)
    g = Gelu <approximate: string = "tanh"> (w)
    x = Cast <to: int = 16> (g)
    codes, scales = trt.TRT_FP4DynamicQuantize
        <axis: int = -1, block_size: int = 16, scale_type: int = 17> (x, one)
}"""


def graph(kit: SimpleNamespace, *, scale: float = 1.0, **changes: str) -> ir.Model:
    """The pattern, with `changes` of its text: what is replaced, and by what."""
    text = GRAPH
    for before, after in (changes.get(name, "").split(" => ") for name in changes):
        assert before in text
        text = text.replace(before, after)
    bias = ir.Tensor(np.zeros(32, ir.DataType.BFLOAT16.numpy()), dtype=ir.DataType.BFLOAT16)
    model: ir.Model = kit.graph(text, bias=bias, one=ir.tensor(np.float32(scale)))
    return model


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_the_pattern_becomes_one_node_with_the_names_of_the_quantiser(
    kit: SimpleNamespace,
) -> None:
    model, changed = lift_gelu(graph(kit))
    assert changed
    (node,) = model.graph
    assert (node.domain, node.op_type) == ("fastwan", "GeluQuantize")
    assert [value.name for value in node.inputs if value is not None] == ["y", "bias"]
    assert [value.name for value in model.graph.outputs] == ["codes", "scales"]
    kinds = [(value.dtype, value.shape) for value in node.outputs]
    assert kinds == [
        (ir.DataType.FLOAT4E2M1, ir.Shape([1, 4, 32])),
        (ir.DataType.FLOAT8E4M3FN, ir.Shape([1, 4, 2])),
    ]
    assert not node.attributes


def test_the_bias_may_come_first(kit: SimpleNamespace) -> None:
    model, changed = lift_gelu(graph(kit, order="Add (y, bias) => Add (bias, y)"))
    assert changed
    assert [value.name for value in model.graph.node(0).inputs if value is not None] == [
        "y",
        "bias",
    ]


FAULTS = {
    "GELU by erf": {"form": '"tanh" => "none"'},
    "another activation": {"op": 'Gelu <approximate: string = "tanh"> => Relu'},
    "GELU in bf16": {
        "wide": "w = Cast <to: int = 1> => w = Cast <to: int = 16>",
        "type": "float[1, 4, 32] w => bfloat16[1, 4, 32] w",
    },
    "no bias": {"bias": "Add (y, bias) => Add (y, y)"},
    "a value that is read elsewhere": {
        "output": "float8e4m3fn[1, 4, 2] scales) => float8e4m3fn[1, 4, 2] scales, "
        "bfloat16[1, 4, 32] x)",
        "inner": ", bfloat16[1, 4, 32] x> => >",
    },
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_the_kernel_does_not_compute_stays(kit: SimpleNamespace, fault: str) -> None:
    model = graph(kit, **FAULTS[fault])
    before = ops(model)
    assert not lift_gelu(model)[1]
    assert ops(model) == before


def test_another_global_scale_stays(kit: SimpleNamespace) -> None:
    assert not lift_gelu(graph(kit, scale=0.5))[1]


def test_every_feed_forward_of_the_transformer_is_lifted(exported: Any, tiny: Any) -> None:
    original = exported.model()
    model, changed = lift_gelu(clone(original))
    assert changed
    lifted = [node for node in model.graph if node.op_type == "GeluQuantize"]
    assert len(lifted) == tiny.config.num_layers
    assert ops(model).count("Gelu") == ops(original).count("Gelu") - len(lifted)  # of the text
    made = {value.name for node in original.graph for value in node.outputs}
    assert {value.name for node in model.graph for value in node.outputs} < made
    for node in lifted:
        y, bias = node.inputs
        assert y is not None
        assert y.producer().op_type == "MatMul"  # type: ignore[union-attr]
        assert bias is not None
        assert bias.is_initializer()
