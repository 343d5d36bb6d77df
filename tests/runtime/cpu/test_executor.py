"""The ONNX Runtime executor and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fastwan.bundle import open_bundle
from fastwan.errors import BadInput, VerificationFailed
from fastwan.manifest import MANIFEST, TensorSpec
from fastwan.runtime.cpu.executor import OnnxRuntimeExecutor, cpu_executor

BF16 = ml_dtypes.bfloat16


def save(path: Path, nodes: list, inputs: list, outputs: list, **constants: np.ndarray) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*each) for each in inputs],
        [helper.make_tensor_value_info(*each) for each in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path
    )
    return path


@pytest.fixture
def double(tmp_path: Path) -> OnnxRuntimeExecutor:
    """y = 2 x in bf16 with a dynamic axis."""
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["f", "f"], ["g"]),
        helper.make_node("Cast", ["g"], ["y"], to=TensorProto.BFLOAT16),
    ]
    x = ("x", TensorProto.BFLOAT16, [1, "n", 4])
    y = ("y", TensorProto.BFLOAT16, [1, "n", 4])
    return OnnxRuntimeExecutor(save(tmp_path / "double.onnx", nodes, [x], [y]))


def test_bf16_goes_in_and_out_with_a_dynamic_axis(double: OnnxRuntimeExecutor) -> None:
    assert double.inputs["x"] == TensorSpec(name="x", dtype="bfloat16", shape=(1, "n", 4))
    for length in (1, 3):
        x = np.random.default_rng(0).standard_normal((1, length, 4)).astype(BF16)
        y = double.run({"x": x})["y"]
        assert y.dtype == BF16
        np.testing.assert_array_equal(y.astype(np.float32), 2 * x.astype(np.float32))


def test_fp32_input_is_rounded_to_the_graphs_bf16(double: OnnxRuntimeExecutor) -> None:
    x = np.full((1, 1, 4), 1 + 2.0**-8 + 2.0**-16, np.float32)
    np.testing.assert_array_equal(double.run({"x": x})["y"].astype(np.float32), 2 * (1 + 2.0**-7))


def test_results_are_written_to_the_callers_buffer(double: OnnxRuntimeExecutor) -> None:
    buffer = np.zeros((1, 2, 4), BF16)
    results = double.run({"x": np.ones((1, 2, 4), BF16)}, {"y": buffer})
    assert results["y"] is buffer
    np.testing.assert_array_equal(buffer.astype(np.float32), 2)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": np.zeros((1, 2, 5), np.float32)}, r"x has shape \[1, 2, 5\]"),
        ({"x": np.zeros((1, 4), np.float32)}, r"x has shape \[1, 4\]"),
        ({"x": np.zeros((1, 2, 4), np.int64)}, "x is int64"),
        ({"z": np.zeros((1, 2, 4), np.float32)}, "not those of the graph: x, z"),
        ({}, "not those of the graph: x"),
    ],
)
def test_wrong_inputs_are_refused(
    double: OnnxRuntimeExecutor, inputs: dict[str, np.ndarray], message: str
) -> None:
    double.run({"x": np.zeros((1, 2, 4), np.float32)})
    with pytest.raises(BadInput, match=message):
        double.run(inputs)


def test_a_graph_that_onnx_runtime_cannot_load_is_one_line(tmp_path: Path) -> None:
    node = helper.make_node("SageAttention3", ["x"], ["y"], domain="fastwan")
    value = ("x", TensorProto.FLOAT, [1]), ("y", TensorProto.FLOAT, [1])
    path = save(tmp_path / "plugin.onnx", [node], [value[0]], [value[1]])
    with pytest.raises(BadInput, match=r"cannot load the graph: .*plugin.onnx") as caught:
        OnnxRuntimeExecutor(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_is_the_callers_and_not_the_machines(
    tmp_path: Path, threads: int
) -> None:
    # How a sum is split decides its bits: the same bytes on every machine need a fixed number.
    rng = np.random.default_rng(0)
    shape = [1, 65, 1000]
    path = save(
        tmp_path / "product.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [("x", TensorProto.FLOAT, shape)],
        [("y", TensorProto.FLOAT, [1, 65, 300])],
        w=rng.standard_normal((1000, 300)).astype(np.float32),
    )
    x = rng.standard_normal(shape).astype(np.float32)
    executor = OnnxRuntimeExecutor(path, threads=threads)
    options = executor._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (threads, 1)
    runs = {
        OnnxRuntimeExecutor(path, threads=threads).run({"x": x})["y"].tobytes() for _ in range(3)
    }
    assert len(runs) == 1


def test_a_tampered_file_is_refused_before_it_is_parsed(
    bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    cpu_executor(open_bundle(bundle.root), "dit")
    path = bundle.onnx / "dit.data"
    raw = bytearray(path.read_bytes())
    raw[3] ^= 1
    path.write_bytes(raw)
    parsed: list[str] = []
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *a, **k: parsed.append("ort"))
    monkeypatch.setattr(onnx, "load", lambda *a, **k: parsed.append("onnx"))
    with pytest.raises(VerificationFailed, match=r"onnx/dit.data"):
        cpu_executor(open_bundle(bundle.root), "dit")
    assert parsed == []


def test_a_graph_that_reads_an_unlisted_file_is_refused(bundle: Any) -> None:
    cpu_executor(open_bundle(bundle.root), "dit")
    bundle.data = {}
    bundle.write_manifest()
    with pytest.raises(BadInput, match=r"dit.data.*does not list"):
        cpu_executor(open_bundle(bundle.root), "dit")


@pytest.mark.parametrize("place", ["initializer", "constant", "subgraph"])
def test_a_path_out_of_the_bundle_is_refused_wherever_it_stands(bundle: Any, place: str) -> None:
    path = bundle.onnx / "decoder.cpu.onnx"
    (bundle.root / "secret").write_bytes(b"\0" * 64)
    model = onnx.load(path)
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "leak")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    constant = helper.make_node("Constant", [], ["leaked"])
    constant.attribute.append(
        onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR, t=tensor)
    )
    if place == "initializer":
        model.graph.initializer.append(tensor)
    elif place == "constant":
        model.graph.node.append(constant)
    else:
        value = helper.make_tensor_value_info("leaked", TensorProto.FLOAT, [4])
        branch = helper.make_graph([constant], "branch", [], [value])
        model.graph.node.append(
            helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch)
        )
    cpu_executor(open_bundle(bundle.root), "decoder")
    path.write_bytes(model.SerializeToString())
    bundle.write_manifest()
    with pytest.raises(BadInput, match=r"leak.*reads '../secret'"):
        cpu_executor(open_bundle(bundle.root), "decoder")


def test_external_data_beyond_the_end_of_its_file_is_refused(bundle: Any) -> None:
    path = bundle.onnx / "dit.cpu.onnx"
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "offset":
            entry.value = "4096"
    path.write_bytes(model.SerializeToString())
    bundle.write_manifest()
    with pytest.raises(BadInput, match=r"ends beyond dit\.data"):
        cpu_executor(open_bundle(bundle.root), "dit")


def edit_manifest(root: Path, graph: str, record: dict[str, Any] | None) -> None:
    manifest = json.loads((root / MANIFEST).read_text())
    if record is None:
        del manifest["onnx"]["graphs"][graph]
    else:
        manifest["onnx"]["graphs"][graph] |= record
    (root / MANIFEST).write_text(json.dumps(manifest))


def test_a_bundle_without_the_graph_says_which(bundle: Any) -> None:
    cpu_executor(open_bundle(bundle.root), "dit")
    edit_manifest(bundle.root, "dit", None)
    with pytest.raises(BadInput, match="no graph 'dit'"):
        cpu_executor(open_bundle(bundle.root), "dit")


def test_a_graph_of_standard_operators_needs_no_cpu_twin(bundle: Any) -> None:
    edit_manifest(bundle.root, "decoder", {"cpu_file": None, "file": "decoder.cpu.onnx"})
    assert "frames" in cpu_executor(open_bundle(bundle.root), "decoder").outputs


def test_a_graph_without_cpu_twin_names_the_operator_that_needs_one(bundle: Any) -> None:
    model = onnx.load(bundle.onnx / "decoder.cpu.onnx")
    model.graph.node.append(helper.make_node("SageAttention3", ["latent"], ["z"], domain="fastwan"))
    onnx.save(model, bundle.onnx / "decoder.onnx")
    bundle.write_manifest()
    cpu_executor(open_bundle(bundle.root), "decoder")
    edit_manifest(bundle.root, "decoder", {"cpu_file": None})
    with pytest.raises(BadInput, match=r"no CPU reference.*fastwan::SageAttention3"):
        cpu_executor(open_bundle(bundle.root), "decoder")
