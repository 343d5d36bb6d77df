"""Saving ONNX files: the same bytes each time, no trace of the exporter, whole or not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from fastwan.errors import BadInput
from fastwan.export import onnx_io, tracing


class Toy(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.large = torch.nn.Linear(64, 64)
        self.narrow = torch.nn.Linear(64, 64).bfloat16()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.narrow(torch.nn.functional.gelu(self.large(x)).bfloat16()).mean(-1)


def _traced() -> ir.Model:
    return tracing.trace(
        Toy().eval(), (torch.zeros(2, 64),), name="toy", inputs=["x"], outputs=["y"]
    )


def _save(folder: Path) -> None:
    folder.mkdir()
    onnx_io.save_model(_traced(), folder / "toy.onnx", data=folder / "toy.data")


def test_two_exports_are_the_same_bytes_without_a_path(tmp_path: Path) -> None:
    for name in ("a", "b"):
        _save(tmp_path / name)
    for file in ("toy.onnx", "toy.data"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    content = (tmp_path / "a" / "toy.onnx").read_bytes()
    for trace in (str(tmp_path), str(Path(__file__).parent), "site-packages", "File ", "torch."):
        assert trace.encode() not in content


def test_external_tensors_are_aligned_and_whole(tmp_path: Path) -> None:
    _save(tmp_path / "a")
    bare = onnx.load(str(tmp_path / "a" / "toy.onnx"), load_external_data=False)
    external = [t for t in bare.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    assert [t.name for t in external] == ["large.weight", "narrow.weight"]
    for tensor in external:
        entries = {e.key: e.value for e in tensor.external_data}
        assert entries["location"] == "toy.data"
        assert int(entries["offset"]) % onnx_io.ALIGNMENT == 0
    loaded = ir.load(tmp_path / "a" / "toy.onnx").graph.initializers
    toy = Toy()
    for name in ("large.weight", "narrow.weight", "narrow.bias"):
        value = loaded[name].const_value
        assert value is not None
        assert torch.equal(onnx_io.torch_tensor(value), toy.state_dict()[name])


def test_strip_reaches_nodes_values_functions_and_subgraphs() -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 23, "own" : 1], producer_name: "x", doc_string: "d">
        g (float[4] x, bool c) => (float[4] y) {
            a = own.Twice (x)
            y = If (c) <then_branch = t () => (float[4] p) { p = Neg (a) },
                        else_branch = e () => (float[4] q) { q = Abs (a) }>
        }
        <domain: "own", opset_import: ["" : 23]> Twice (v) => (w) { w = Add (v, v) }
    """
    model = ir.from_onnx_text(text)
    function = next(iter(model.functions.values()))
    every = [*ir.traversal.RecursiveGraphIterator(model.graph), *function]
    assert len(every) == 5
    for node in every:
        node.doc_string = "secret"
        node.metadata_props["stack"] = "secret"
        node.outputs[0].metadata_props["stack"] = "secret"
    function.doc_string = "secret"
    for graph in model.graphs():
        graph.doc_string = "secret"
    assert b"secret" in ir.to_proto(model).SerializeToString()
    onnx_io.strip(model)
    assert b"secret" not in ir.to_proto(model).SerializeToString()
    assert model.doc_string is None


@pytest.mark.parametrize("op", ["Relu", "Rellu"])
def test_refused_model_leaves_no_file(tmp_path: Path, op: str) -> None:
    model = ir.from_onnx_text(
        f'<ir_version: 11, opset_import: ["" : 23]> '
        f"g (float[4] x) => (float[4] y) {{ y = {op} (x) }}"
    )
    path = tmp_path / "m.onnx"
    if op == "Relu":
        onnx_io.save_model(model, path)
        assert path.is_file()
    else:
        with pytest.raises(BadInput, match=r"invalid.*m\.onnx"):
            onnx_io.save_model(model, path)
        assert list(tmp_path.iterdir()) == []


def test_initializer_without_value_is_named(tmp_path: Path) -> None:
    model = _traced()
    model.graph.initializers["large.weight"].const_value = None
    with pytest.raises(BadInput, match=r"no value.*large\.weight"):
        onnx_io.save_model(model, tmp_path / "m.onnx", data=tmp_path / "m.data")
    assert list(tmp_path.iterdir()) == []


def test_packed_tensor_keeps_its_type_and_shape(tmp_path: Path) -> None:
    packed = torch.arange(32, dtype=torch.uint8).reshape(4, 8)
    with onnx_io.data_file(tmp_path / "d") as writer:
        writer.add("first", torch.ones(3))
        external = writer.add("w", packed, dtype=ir.DataType.FLOAT4E2M1, shape=(4, 16))
    assert (external.offset, external.length) == (onnx_io.ALIGNMENT, 32)
    assert external.dtype == ir.DataType.FLOAT4E2M1
    content = (tmp_path / "d").read_bytes()
    assert content[external.offset :] == packed.numpy().tobytes()
    assert np.frombuffer(content[:12], np.float32).tolist() == [1, 1, 1]
