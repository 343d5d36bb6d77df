"""Each operator in torch against onnx's own reference evaluator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from fastwan.errors import BadInput
from fastwan.onnx_guard import BundleGraph
from fastwan.runtime.emulated.graph import TorchGraph
from fastwan.runtime.emulated.operators import OPERATORS

RANDOM = np.random.default_rng(5)
X = RANDOM.standard_normal((2, 3, 4, 6)).astype(np.float32)
POSITIVE = np.abs(X) + 0.5


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


CASES: list[tuple[str, list[np.ndarray], dict[str, Any]]] = [
    ("Add", [X, X[0]], {}),
    ("Sub", [X, POSITIVE], {}),
    ("Mul", [X, np.float32(3)], {}),
    ("Div", [X, POSITIVE], {}),
    ("Max", [X, np.float32(0.1)], {}),
    ("Min", [X, np.float32(0.1)], {}),
    ("MatMul", [X, X.swapaxes(2, 3)], {}),
    ("Cast", [X], {"to": TensorProto.FLOAT16}),
    ("Cast", [POSITIVE * 70], {"to": TensorProto.UINT8}),
    ("Concat", [X, X], {"axis": 1}),
    ("Cos", [X], {}),
    ("Sin", [X], {}),
    ("Tanh", [X], {}),
    ("Relu", [X], {}),
    ("Sigmoid", [X], {}),
    ("Sqrt", [POSITIVE], {}),
    ("Reciprocal", [POSITIVE], {}),
    ("Gelu", [X], {"approximate": "tanh"}),
    ("Gelu", [X], {}),
    ("Softmax", [X], {"axis": -1}),
    ("Transpose", [X], {"perm": [0, 2, 1, 3]}),
    ("Transpose", [X], {}),
    ("ReduceMean", [X, ints(-1)], {"keepdims": 1}),
    ("ReduceMean", [X, ints(1, 2)], {"keepdims": 0}),
    ("Reshape", [X, ints(2, -1, 6)], {}),
    ("Reshape", [X, ints(0, 12, -1)], {}),
    ("Slice", [X, ints(1), ints(3), ints(2), ints(1)], {}),
    ("Slice", [X, ints(-3), ints(2**62), ints(-1)], {}),
    ("Slice", [X, ints(3, 0), ints(-9, 2), ints(3, 1), ints(-1, 1)], {}),
    ("Gather", [X, np.array(2, np.int64)], {"axis": 1}),
    ("Gather", [X[0, 0], ints(3, 0, 0).reshape(3, 1)], {"axis": 0}),
    ("Unsqueeze", [X, ints(0, 2)], {}),
    ("Squeeze", [X[:1], ints(0)], {}),
    ("Pad", [X, ints(0, 0, 0, 0, 0, 0, 0, 2)], {"mode": "constant"}),
    ("Pad", [X, ints(1, 0, 2, 0, 0, 1, 0, 3), np.float32(7)], {}),
    ("Attention", [X, X[:, :, :2], X[:, :, 1:3]], {"scale": 0.3}),
    ("Attention", [X[:, 0], X[:, 1], X[:, 2], X[:, :2, :, :4]],
     {"scale": 1.0, "q_num_heads": 2, "kv_num_heads": 2}),
    ("Conv", [X, RANDOM.standard_normal((5, 3, 3, 3)).astype(np.float32)],
     {"pads": [1, 1, 1, 1], "strides": [2, 1]}),
    ("Resize", [X, np.array([], np.float32), np.array([1, 1, 2, 3], np.float32)],
     {"mode": "nearest", "nearest_mode": "floor",
      "coordinate_transformation_mode": "asymmetric"}),
    ("Shape", [X], {"start": 1, "end": 3}),
]  # fmt: skip

QUANTISED = {"DequantizeLinear", "TRT_FP4DynamicQuantize"}
"""Held against plugins/nvfp4.py in the other tests of this folder."""


def graph_of(
    op: str, inputs: list[np.ndarray], attributes: dict[str, Any]
) -> tuple[onnx.ModelProto, list[str]]:
    names = [f"x{index}" if array.size else "" for index, array in enumerate(inputs)]
    node = helper.make_node(op, names, ["y"], name="node", **attributes)
    constant = [array.dtype == np.int64 or array.ndim == 0 or (index == 2 and op == "Resize")
                for index, array in enumerate(inputs)]  # fmt: skip
    kept = [(n, a) for n, a, c in zip(names, inputs, constant, strict=True) if c and n]
    given = [(n, a) for n, a, c in zip(names, inputs, constant, strict=True) if not c and n]
    values = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for n, a in given
    ]
    graph = helper.make_graph(
        [node],
        "g",
        values,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in kept],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)]), [
        name for name, _ in given
    ]


@pytest.mark.parametrize(
    "case", CASES, ids=[f"{index}-{case[0]}" for index, case in enumerate(CASES)]
)
def test_an_operator_is_what_onnx_says(case: Any, tmp_path: Any) -> None:
    op, inputs, attributes = case
    model, given = graph_of(op, inputs, attributes)
    arrays = {f"x{index}": array for index, array in enumerate(inputs)}
    (made,) = ReferenceEvaluator(model).run(None, {name: arrays[name] for name in given})
    expected = np.ascontiguousarray(made)
    source = BundleGraph(model, b"", tmp_path, "g.onnx")
    graph = TorchGraph(source, given, ["y"], torch.device("cpu"))
    out = torch.empty(expected.shape, dtype=torch.from_numpy(expected).dtype)
    tensors = {name: torch.from_numpy(arrays[name].copy()) for name in given}
    graph.run(tensors, {"y": out})
    np.testing.assert_allclose(out.numpy(), expected, rtol=2e-5, atol=2e-6)


def test_every_operator_is_held_against_onnx() -> None:
    assert {op for _, op in OPERATORS} == {case[0] for case in CASES} | QUANTISED


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "message"),
    [
        ("Erf", [X], {}, "Erf of 'node' is not emulated"),
        ("Conv", [X, X[:, :, :3, :3]], {"pads": [1, 1, 0, 1]}, "differ at both ends"),
        ("Resize", [X, np.array([], np.float32), np.array([1, 1, 1.5, 2], np.float32)],
         {"mode": "nearest"}, "whole factors"),
    ],
)  # fmt: skip
def test_what_is_not_emulated_is_refused(
    op: str, inputs: list[np.ndarray], attributes: dict[str, Any], message: str, tmp_path: Any
) -> None:
    model, given = graph_of(op, inputs, attributes)
    arrays = {f"x{index}": array for index, array in enumerate(inputs)}
    source = BundleGraph(model, b"", tmp_path, "g.onnx")
    with pytest.raises(BadInput, match=message):
        TorchGraph(source, given, ["y"], torch.device("cpu")).run(
            {name: torch.from_numpy(arrays[name]) for name in given}, {"y": torch.empty(0)}
        )


def test_a_value_that_nothing_computes_is_named(tmp_path: Any) -> None:
    model, given = graph_of("Relu", [X], {})
    source = BundleGraph(model, b"", tmp_path, "g.onnx")
    assert TorchGraph(source, given, ["y"], torch.device("cpu")).outputs == ("y",)
    with pytest.raises(BadInput, match="nothing computes 'z'"):
        TorchGraph(source, given, ["z"], torch.device("cpu"))


def pieces(read_own: bool) -> onnx.ModelProto:
    """Two blocks of which the second reads a length from the graph's input, or the input itself."""
    length = [helper.make_node("Shape", ["own"], ["length"])]
    first = [helper.make_node("Sin", ["own"], ["hidden"])]
    second = [
        helper.make_node("Reshape", ["hidden", "length"], ["shaped"]),
        helper.make_node("Add", ["shaped", "own" if read_own else "hidden"], ["out"]),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3]) for n in ("own", "out")]
    graph = helper.make_graph([*length, *first, *second], "pieces", values[:1], values[1:])
    return helper.make_model(graph)


def test_a_later_piece_takes_the_length_from_what_it_is_given(tmp_path: Path) -> None:
    source = BundleGraph(pieces(read_own=False), b"", tmp_path, "g.onnx")
    piece = TorchGraph(source, ["hidden"], ["out"], torch.device("cpu"))
    hidden, out = torch.randn(4, 3), torch.empty(4, 3)
    piece.run({"hidden": hidden}, {"out": out})
    assert torch.equal(out, 2 * hidden)


def test_a_later_piece_that_reads_the_input_itself_is_refused(tmp_path: Path) -> None:
    source = BundleGraph(pieces(read_own=True), b"", tmp_path, "g.onnx")
    with pytest.raises(BadInput, match="nothing computes 'own'"):
        TorchGraph(source, ["hidden"], ["out"], torch.device("cpu"))
