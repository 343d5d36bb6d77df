"""Graphs of a bundle as the CPU reference and the GPU runtime read them: one check for both."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fastwan.bundle import Bundle
from fastwan.errors import BadInput, VerificationFailed
from fastwan.manifest import Graph
from fastwan.onnx_guard import bundle_graph, checked_model
from fastwan.runtime.cpu.executor import cpu_executor
from fastwan.runtime.device.constants import initializers
from testkit.manifests import exported_of, records_of, write_manifest
from testkit.stand_in_hub import as_fetched

WEIGHT = np.arange(8, dtype=np.float32).reshape(2, 4)
OFFSET = 16


def external(name: str = "w") -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=WEIGHT.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "dit.data"), ("offset", OFFSET), ("length", WEIGHT.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def edit(tensor: TensorProto, **fields: str | None) -> None:
    """Change fields of a tensor's external data; None removes one."""
    entries = {entry.key: entry.value for entry in tensor.external_data} | fields
    del tensor.external_data[:]
    for key, value in entries.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)


def graph() -> onnx.ModelProto:
    """y = x @ w, and an embedded constant."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "mm")]
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, [1, 2])],
        [value("y", TensorProto.FLOAT, [1, 4])],
        [external(), numpy_helper.from_array(np.float32([1, 2]), "c")],
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


Write = Callable[..., Bundle]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A bundle of one graph whose hashes are right, whatever is in it."""

    def make(model: onnx.ModelProto, listed: Collection[str] = ("dit.data",)) -> Bundle:
        folder = tmp_path / "bundle" / "onnx"
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / "bundle" / "secret").write_bytes(bytes(1000))
        (folder / "other.data").write_bytes(bytes(1000))
        (folder / "dit.data").write_bytes(bytes(OFFSET) + WEIGHT.tobytes())
        (folder / "dit.onnx").write_bytes(model.SerializeToString())
        record = Graph(file="dit.onnx", data=tuple(listed), inputs=(), outputs=())
        root = tmp_path / "bundle"
        files = {name: each for name, each in records_of(root).items() if name != "secret"}
        return Bundle(root, write_manifest(root, onnx=exported_of({"dit": record}), files=files))

    return make


def test_a_sound_graph_is_read_by_both(write: Write) -> None:
    bundle = write(graph())
    assert dict(initializers(bundle, ["w", "c", "w"])) == {
        "w": WEIGHT.tobytes(),
        "c": np.float32([1, 2]).tobytes(),
    }
    y = cpu_executor(bundle, "dit").run({"x": np.float32([[1, 10]])})["y"]
    np.testing.assert_array_equal(y, np.float32([[1, 10]]) @ WEIGHT)


@pytest.mark.parametrize("shared", [False, True])
def test_a_graph_in_the_hubs_cache_is_read_by_both(
    write: Write, tmp_path: Path, shared: bool
) -> None:
    """Where graph and data are links, which ONNX Runtime takes in place of no data file."""
    bundle = write(graph())
    snapshot = as_fetched(bundle.root, tmp_path / "hub")
    data = snapshot / "onnx" / "dit.data"
    if shared:
        store = tmp_path / "hub" / "blobs" / "ab" / ("ab" * 32)
        store.parent.mkdir(parents=True)
        blob = data.resolve()
        blob.rename(store)
        blob.symlink_to(f"../../blobs/ab/{store.name}")
    assert data.is_symlink()
    fetched = Bundle(snapshot, bundle.manifest)
    assert dict(initializers(fetched, ["w"])) == {"w": WEIGHT.tobytes()}
    y = cpu_executor(fetched, "dit").run({"x": np.float32([[1, 10]])})["y"]
    np.testing.assert_array_equal(y, np.float32([[1, 10]]) @ WEIGHT)

    content = data.read_bytes()
    data.resolve().write_bytes(bytes(len(content)))
    again = Bundle(snapshot, bundle.manifest)
    with pytest.raises(VerificationFailed, match="differs from its hash"):
        dict(initializers(again, ["w"]))
    with pytest.raises(VerificationFailed, match="differs from its hash"):
        cpu_executor(again, "dit")


def test_initializers_that_were_not_embedded_raw_are_read(write: Write) -> None:
    model = graph()
    del model.graph.initializer[1]
    model.graph.initializer.append(helper.make_tensor("c", TensorProto.FLOAT, [2], [1.0, 2.0]))
    assert dict(initializers(write(model), ["c"]))["c"] == np.float32([1, 2]).tobytes()
    with pytest.raises(BadInput, match="no initializer 'absent'"):
        dict(initializers(write(model), ["absent"]))
    assert dict(initializers(write(model), [])) == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"length": None}, "length is ''"),
        ({"length": "31"}, "31 bytes, dtype and shape call for 32"),
        ({"offset": "17"}, "ends beyond dit.data"),
        ({"offset": "-16"}, "offset is '-16'"),
        ({"offset": "1²"}, "offset is '1²'"),
        ({"location": "../secret"}, "reads '../secret', which the manifest does not list"),
        ({"location": "other.data"}, "reads 'other.data', which the manifest does not list"),
        ({"location": "./dit.data"}, "does not list"),
        ({"location": None}, "no location"),
        ({"comment": "x"}, "unknown key 'comment'"),
    ],
)
def test_hostile_external_data_is_refused_by_both(
    write: Write, fields: dict[str, str | None], message: str
) -> None:
    model = graph()
    edit(model.graph.initializer[0], **fields)
    bundle = write(model)
    for read in (lambda: dict(initializers(bundle, ["c"])), lambda: cpu_executor(bundle, "dit")):
        with pytest.raises(BadInput, match=re.escape(message)) as refused:
            read()
        assert refused.value.where == "dit.onnx"


def test_a_graph_that_is_none_is_refused_by_both(write: Write) -> None:
    bundle = write(onnx.ModelProto(ir_version=10))
    for read in (lambda: dict(initializers(bundle, ["c"])), lambda: cpu_executor(bundle, "dit")):
        with pytest.raises(BadInput, match="without graph or opset"):
            read()


def test_a_file_that_changed_is_refused_before_it_is_parsed(write: Write) -> None:
    bundle = write(graph())
    bundle_graph(bundle, "dit.onnx", ("dit.data",))
    again = Bundle(bundle.root, bundle.manifest)
    (bundle.root / "onnx" / "dit.data").write_bytes(bytes(48))
    with pytest.raises(VerificationFailed, match=r"dit\.data"):
        bundle_graph(again, "dit.onnx", ("dit.data",))


def test_what_was_checked_is_what_runs(write: Write) -> None:
    bundle = write(graph())
    checked = bundle_graph(bundle, "dit.onnx", ("dit.data",))
    assert checked.data == (bundle.root / "onnx" / "dit.onnx").read_bytes()
    assert checked.content(checked.model.graph.initializer[0]) == WEIGHT.tobytes()


def test_a_nested_node_without_a_cpu_kernel_is_named(write: Write) -> None:
    model = graph()
    value = helper.make_tensor_value_info("z", TensorProto.FLOAT, [1])
    for domain, works in (("", True), ("fastwan", False)):
        inner = helper.make_node("Identity", ["c"], ["z"], "odd", domain=domain)
        branch = helper.make_graph([inner], "branch", [], [value])
        nested = onnx.ModelProto()
        nested.CopyFrom(model)
        nested.graph.initializer.append(numpy_helper.from_array(np.bool_(True), "t"))
        nested.graph.node.append(
            helper.make_node("If", ["t"], ["e"], "if", then_branch=branch, else_branch=branch)
        )
        if works:
            cpu_executor(write(nested), "dit")
        else:
            with pytest.raises(BadInput, match="no CPU reference: the graph uses fastwan::Ident"):
                cpu_executor(write(nested), "dit")


@pytest.mark.parametrize(
    ("dtype", "field", "right"),
    [
        (TensorProto.FLOAT, "float_data", 6),
        (TensorProto.DOUBLE, "double_data", 6),
        (TensorProto.INT64, "int64_data", 6),
        (TensorProto.UINT64, "uint64_data", 6),
        (TensorProto.UINT8, "int32_data", 6),
        (TensorProto.BFLOAT16, "int32_data", 6),
        (TensorProto.FLOAT4E2M1, "int32_data", 3),
    ],
)
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_numbers_that_are_not_raw_are_as_many_as_the_shape_says(
    tmp_path: Path, dtype: int, field: str, right: int, extra: int
) -> None:
    tensor = TensorProto(name="c", data_type=dtype, dims=[2, 3])
    getattr(tensor, field).extend([0] * (right + extra))
    model = graph()
    del model.graph.initializer[:]
    model.graph.initializer.append(tensor)
    if extra:
        with pytest.raises(BadInput, match=f"holds {right + extra} numbers, not {right}"):
            checked_model(model.SerializeToString(), tmp_path, "g")
    else:
        checked_model(model.SerializeToString(), tmp_path, "g")
