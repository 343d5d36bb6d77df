"""`attend_rows` and `read_once`: graphs that FP8 engines are built from compute what they did."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
import torch

from fastwan.export.passes.attend_rows import attend_rows
from fastwan.export.passes.graphs import clone
from fastwan.export.passes.read_once import read_once

L, T, H, D = 24, 16, 2, 32
C = H * D
ATTENTION = """
g (float[1, 24, 64] q, float[1, 16, 64] k, float[1, 2, 16, 32] v, float[1, 1, 24, 16] mask,
   int64[4] q_heads, int64[4] k_heads, int64[3] joined)
  => (float[1, 24, 64] out) {
    q_rows = Reshape(q, q_heads)
    q_turned = Transpose <perm = [0, 2, 1, 3]> (q_rows)
    k_rows = Reshape(k, k_heads)
    k_turned = Transpose <perm = [0, 2, 1, 3]> (k_rows)
    attended = Attention <scale: float = 0.25> (q_turned, k_turned, v%s)
    back = Transpose <perm = [0, 2, 1, 3]> (attended)
    out = Reshape(back, joined)
}
"""
SHAPES = {
    "q_rows": (1, L, H, D), "q_turned": (1, H, L, D), "k_rows": (1, T, H, D),
    "k_turned": (1, H, T, D), "attended": (1, H, L, D), "back": (1, L, H, D), "out": (1, L, C),
}  # fmt: skip
QUANTISER = """
g (float[1, 24, 64] x, float[1, 24, 64] other, int64[1] last) => (float[1, 24, 64] out) {
    size = Abs(x)
    most = ReduceMax <keepdims: int = 1> (size, last)
    quotient = Div(x, most)
    out = Mul(quotient, %s)
}
"""


def attention(kit: SimpleNamespace, mask: str = "") -> ir.Model:
    made: ir.Model = kit.graph(
        ATTENTION % mask,
        q_heads=ir.tensor(np.array([1, L, H, D])),
        k_heads=ir.tensor(np.array([1, T, H, D])),
        joined=ir.tensor(np.array([1, L, C])),
    )
    for index, node in enumerate(made.graph):
        node.name = f"node_{index}"
        value = node.outputs[0]
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(SHAPES[value.name])
    return made


def drawn(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_an_attention_over_rows_is_that_over_heads(kit: SimpleNamespace) -> None:
    whole = attention(kit)
    rows, changed = attend_rows(clone(whole))
    assert changed
    kinds = [node.op_type for node in rows.graph]
    assert "Attention" not in kinds
    assert [kinds.count(kind) for kind in ("MatMul", "Softmax", "Transpose")] == [2, 1, 3]
    ranks = {len(node.outputs[0].shape or ()) for node in rows.graph if node.op_type == "Transpose"}
    assert ranks == {3}
    inputs = drawn(q=(1, L, C), k=(1, T, C), v=(1, H, T, D), mask=(1, 1, L, T))
    before, after = (kit.run(each, inputs)["out"] for each in (whole, rows))
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)
    heads = {name: inputs[name].reshape(1, -1, H, D).transpose(1, 2) for name in "qk"}
    exact = torch.nn.functional.scaled_dot_product_attention(
        heads["q"], heads["k"], inputs["v"], scale=0.25
    )
    torch.testing.assert_close(after, exact.transpose(1, 2).flatten(2), rtol=1e-5, atol=1e-6)


def test_a_masked_attention_stays(kit: SimpleNamespace) -> None:
    masked, changed = attend_rows(attention(kit, ", mask"))
    assert not changed
    assert [node.op_type for node in masked.graph].count("Attention") == 1


def test_heads_that_something_else_reads_stay(kit: SimpleNamespace) -> None:
    made = attention(kit)
    attended = next(node for node in made.graph if node.op_type == "Attention").outputs[0]
    made.graph.outputs.append(attended)
    assert not attend_rows(made)[1]


@pytest.mark.parametrize(("also_read_by", "changed"), [("other", True), ("x", False)])
def test_a_quantiser_reads_an_input_once(
    kit: SimpleNamespace, also_read_by: str, changed: bool
) -> None:
    """Where more than the quantiser reads the input, nothing is gained."""
    made: ir.Model = kit.graph(QUANTISER % also_read_by, last=ir.tensor(np.array([-1])))
    once, was_changed = read_once(clone(made))
    assert was_changed == changed
    (given,) = (value for value in once.graph.inputs if value.name == "x")
    assert len(given.uses()) == (1 if changed else 3)
    inputs = drawn(x=(1, L, C), other=(1, L, C))
    before, after = (kit.run(each, inputs)["out"] for each in (made, once))
    assert torch.equal(before, after)
