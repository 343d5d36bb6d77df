"""Hostile ONNX files are refused before anything parses them; their sound twins are not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto
from onnx import helper as oh

from fastwan.errors import BadInput
from fastwan.onnx_guard import checked_model, external_range

DIMS = [4, 8]
FP4_BYTES = 16


def external(location: str = "w.data", offset: str = "8", length: str = "16") -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT4E2M1)
    tensor.dims.extend(DIMS)
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in (("location", location), ("offset", offset), ("length", length)):
        if text:
            tensor.external_data.add(key=key, value=text)
    return tensor


def in_graph(tensor: TensorProto) -> onnx.ModelProto:
    graph = oh.make_graph([], "g", [], [], [tensor])
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 23)])


def in_constant(tensor: TensorProto) -> onnx.ModelProto:
    model = in_graph(external())
    model.graph.node.append(oh.make_node("Constant", [], ["c"], "c", value=tensor))
    return model


def in_subgraph(tensor: TensorProto) -> onnx.ModelProto:
    model = in_graph(external())
    branch = oh.make_graph([], "branch", [], [], [tensor])
    deeper = oh.make_node("If", ["t"], ["d"], "deep", then_branch=branch, else_branch=branch)
    middle = oh.make_graph([deeper], "middle", [], [])
    node = oh.make_node("If", ["t"], ["e"], "if", then_branch=middle, else_branch=middle)
    model.graph.node.append(node)
    return model


def in_function(tensor: TensorProto) -> onnx.ModelProto:
    model = in_graph(external())
    body = [oh.make_node("Constant", [], ["y"], "c", value=tensor)]
    function = oh.make_function("fastwan", "F", [], ["y"], body, [oh.make_opsetid("", 23)])
    model.functions.append(function)
    return model


def in_sparse(tensor: TensorProto) -> onnx.ModelProto:
    model = in_graph(external())
    model.graph.sparse_initializer.add().values.CopyFrom(tensor)
    model.graph.sparse_initializer[0].indices.CopyFrom(external())
    return model


PLACES = [in_graph, in_constant, in_subgraph, in_function, in_sparse]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "bundle"
    inside.mkdir()
    (inside / "w.data").write_bytes(bytes(24))
    (tmp_path / "secret").write_bytes(bytes(24))
    (inside / "symlink").symlink_to(tmp_path / "secret")
    (inside / "folder").symlink_to(tmp_path)
    os.link(tmp_path / "secret", inside / "hardlink")
    return inside


def check(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    return checked_model(model.SerializeToString(), folder, "graph")


@pytest.mark.parametrize("place", PLACES)
def test_sound_external_data_passes(
    place: Callable[[TensorProto], onnx.ModelProto], folder: Path
) -> None:
    assert check(place(external()), folder).graph.name == "g"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("../secret", "outside its folder"),
        ("/etc/passwd", "outside its folder"),
        ("folder/secret", "symbolic link"),
        ("symlink", "symbolic link"),
        ("hardlink", "hard link"),
        ("absent", "missing"),
        (".", "outside|missing"),
        ("..\\secret", "outside its folder"),
    ],
)
def test_a_location_outside_the_folder_is_refused_wherever_it_stands(
    place: Callable[[TensorProto], onnx.ModelProto], folder: Path, location: str, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        check(place(external(location)), folder)


@pytest.mark.parametrize("name", [b"w.data", b"e", b"Identity"])
def test_text_that_is_not_utf8_is_refused(folder: Path, name: bytes) -> None:
    model = in_graph(external())
    model.graph.node.append(oh.make_node("Identity", ["w"], ["e"]))
    data = model.SerializeToString()
    checked_model(data, folder, "g.onnx")
    with pytest.raises(BadInput, match="not UTF-8"):
        checked_model(data.replace(name, b"\xff" * len(name)), folder, "g.onnx")


@pytest.mark.parametrize("location", ["w.data\0", "x" * 5000])
def test_a_location_that_no_file_can_have_is_of_a_missing_one(folder: Path, location: str) -> None:
    with pytest.raises(BadInput, match="file is missing"):
        checked_model(in_graph(external(location)).SerializeToString(), folder, "g.onnx")


@pytest.mark.parametrize("listed", [True, False])
def test_a_hard_link_is_read_where_its_hash_was_checked(folder: Path, listed: bool) -> None:
    names = {"hardlink"} if listed else None
    data = in_graph(external("hardlink")).SerializeToString()
    if listed:
        assert checked_model(data, folder, "graph", names).graph.name == "g"
    else:
        with pytest.raises(BadInput, match="hard link"):
            checked_model(data, folder, "graph", names)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"offset": "9"}, "ends beyond w.data"),
        ({"offset": "-1"}, "offset is '-1'"),
        ({"offset": " 8"}, "offset is ' 8'"),
        ({"offset": "1_0"}, "offset is '1_0'"),
        ({"offset": "9" * 30}, "offset is"),
        ({"length": "15"}, "15 bytes, dtype and shape call for 16"),
        ({"length": "17"}, "17 bytes, dtype and shape call for 16"),
        ({"length": ""}, "length is ''"),
        ({"location": ""}, "no location"),
    ],
)
def test_numbers_must_fit_file_and_shape(
    folder: Path, fields: dict[str, str], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        check(in_graph(external(**fields)), folder)


def test_a_repeated_key_is_refused(folder: Path) -> None:
    tensor = external()
    tensor.external_data.add(key="location", value="/etc/passwd")
    with pytest.raises(BadInput, match="repeated or unknown key 'location'"):
        check(in_graph(tensor), folder)


def test_external_fields_on_an_embedded_tensor_are_refused(folder: Path) -> None:
    tensor = external()
    tensor.data_location = TensorProto.DEFAULT
    with pytest.raises(BadInput, match="no location"):
        check(in_graph(tensor), folder)


def test_a_range_says_where_the_bytes_are(folder: Path) -> None:
    found = external_range(external(), folder, "g")
    assert (found.path, found.offset, found.length) == (folder / "w.data", 8, FP4_BYTES)


@pytest.mark.parametrize("size", [15, 16, 17])
def test_embedded_data_has_the_size_of_its_shape(folder: Path, size: int) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT4E2M1, raw_data=bytes(size))
    tensor.dims.extend(DIMS)
    if size == FP4_BYTES:
        check(in_graph(tensor), folder)
    else:
        with pytest.raises(BadInput, match=f"holds {size} bytes, not 16"):
            check(in_graph(tensor), folder)


@pytest.mark.parametrize("dims", [[-1, 8], [4, 8]])
def test_a_negative_dimension_is_refused(folder: Path, dims: list[int]) -> None:
    tensor = external()
    del tensor.dims[:]
    tensor.dims.extend(dims)
    if min(dims) > 0:
        check(in_graph(tensor), folder)
    else:
        with pytest.raises(BadInput, match="dtype or shape of 'w'"):
            check(in_graph(tensor), folder)


@pytest.mark.parametrize(
    ("domain", "allowed"),
    [("", True), ("trt", True), ("fastwan", True), ("com.microsoft", False), ("evil", False)],
)
def test_domains_are_listed(folder: Path, domain: str, allowed: bool) -> None:
    model = in_subgraph(external())
    branch = model.graph.node[0].attribute[0].g
    branch.node.append(oh.make_node("Op", [], ["z"], "odd", domain=domain))
    if allowed:
        check(model, folder)
    else:
        with pytest.raises(BadInput, match=f"'odd' is of the unexpected domain '{domain}'"):
            check(model, folder)


def test_an_imported_domain_is_listed_too(folder: Path) -> None:
    model = in_graph(external())
    model.opset_import.append(oh.make_opsetid("evil", 1))
    with pytest.raises(BadInput, match="unexpected domain 'evil'"):
        check(model, folder)


@pytest.mark.parametrize(
    "data", [b"", b"\xff" * 64, b"plain text", onnx.ModelProto(ir_version=11).SerializeToString()]
)
def test_what_is_no_model_is_refused(folder: Path, data: bytes) -> None:
    with pytest.raises(BadInput, match="ONNX file"):
        checked_model(data, folder, "graph")


def test_a_truncated_model_is_refused(folder: Path) -> None:
    data = in_subgraph(external()).SerializeToString()
    checked_model(data, folder, "graph")
    with pytest.raises(BadInput):
        checked_model(data[: len(data) // 2], folder, "graph")


def length_delimited(field: int, payload: bytes) -> bytes:
    """A protobuf field of wire type 2."""
    size, varint = len(payload), b""
    while size > 127:
        varint += bytes([size & 127 | 128])
        size >>= 7
    return bytes([field << 3 | 2]) + varint + bytes([size]) + payload


@pytest.mark.parametrize("depth", [5, 500])
def test_a_deeply_nested_model_is_refused(folder: Path, depth: int) -> None:
    graph = b""
    for _ in range(depth):
        attribute = length_delimited(1, b"then_branch") + length_delimited(6, graph)
        graph = length_delimited(1, length_delimited(5, attribute))
    opset = oh.make_opsetid("", 23).SerializeToString()
    data = length_delimited(7, graph) + length_delimited(8, opset)
    if depth < 100:
        checked_model(data, folder, "graph")
    else:
        with pytest.raises(BadInput, match="not an ONNX file"):
            checked_model(data, folder, "graph")
