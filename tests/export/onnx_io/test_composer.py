"""Composing a graph from traced stages."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from fastwan.export.composer import Composer


def _stage() -> ir.Model:
    """y = x * weight + one; `weight` is a parameter (no value), `one` a constant."""
    model = ir.from_onnx_text(
        '<ir_version: 11, opset_import: ["" : 23]> g (float[2] x) => (float[2] y)'
        "  <float[2] weight = {1, 1}, float[1] one = {1}>"
        "{ p = Mul (x, weight)  y = Add (p, one) }"
    )
    model.graph.initializers["weight"].const_value = None
    return model


def test_copies_share_constants_and_have_their_own_parameters() -> None:
    stage = _stage()
    compose = Composer("two")
    value = compose.input(stage, "x")
    for index in range(2):
        (value,) = compose.add(stage, f"blocks.{index}.", {"x": value}, "block.")
    model = compose.model({"out": value})
    assert set(model.graph.initializers) == {"blocks.0.weight", "blocks.1.weight", "block.one"}
    assert model.graph.initializers["block.one"].const_value is not None
    nodes = list(model.graph)
    assert [node.op_type for node in nodes] == ["Mul", "Add", "Mul", "Add"]
    assert nodes[2].inputs[0] is nodes[1].outputs[0]
    assert len({node.name for node in nodes}) == 4
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert [v.name for v in model.graph.outputs] == ["out"]
    # The stage itself is untouched and can be used again.
    assert [node.name for node in stage.graph] == [node.name for node in _stage().graph]
    assert set(stage.graph.initializers) == {"weight", "one"}


def test_composed_graph_computes_the_stages_in_turn() -> None:
    ort = pytest.importorskip("onnxruntime")
    import numpy as np

    stage = _stage()
    compose = Composer("two")
    value = compose.input(stage, "x")
    for index in range(2):
        (value,) = compose.add(stage, f"blocks.{index}.", {"x": value}, "block.")
    model = compose.model({"out": value})
    for index, factor in enumerate((2.0, 10.0)):
        weight = model.graph.initializers[f"blocks.{index}.weight"]
        weight.const_value = ir.tensor(np.full(2, factor, np.float32), name=weight.name)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    (result,) = session.run(None, {"x": np.array([0, 3], np.float32)})
    assert result.tolist() == [11, 71]
