"""Checks on an ONNX graph before any parser, checker or runtime sees it.

Parsers of ONNX open whatever file an initializer names and trust its offsets. So a graph is
refused unless every reference stays in its folder, names plain files, and holds exactly the bytes
that dtype and shape call for.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, TensorProto

from fastwan.dtypes import DTYPES, packed_bytes
from fastwan.errors import BadInput
from fastwan.files import confined_file
from fastwan.hub.links import hub_cache_of

if TYPE_CHECKING:
    from fastwan.bundle import Bundle

STANDARD_DOMAINS = frozenset({"", "ai.onnx", "trt"})
"""Domains whose operators the builders know themselves."""

ALLOWED_DOMAINS = STANDARD_DOMAINS | {"fastwan"}

MAX_BYTES = (2 << 30) - 1
"""Largest protobuf message."""

_BITS = {int(TensorProto.DataType.Value(dtype.onnx)): dtype.bits for dtype in DTYPES}
_FIELDS: dict[int, str] = {
    TensorProto.FLOAT: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.INT64: "int64_data",
    TensorProto.UINT32: "uint64_data",
    TensorProto.UINT64: "uint64_data",
}
_KEYS = {"location", "offset", "length", "checksum"}


@dataclass(frozen=True)
class DataRange:
    """Bytes of one external tensor."""

    path: Path
    offset: int
    length: int


@dataclass(frozen=True)
class BundleGraph:
    """A checked graph of a bundle.

    Attributes:
        model: decoded.
        data: the same, serialised.
        folder: what the locations of its external data are relative to.
        file: its path under ``onnx/``, for errors.
    """

    model: onnx.ModelProto
    data: bytes
    folder: Path
    file: str

    def content(self, tensor: TensorProto) -> bytes:
        """Raw bytes of a tensor of the graph, little endian and row-major.

        Raises:
            BadInput: see `checked_model`.
        """
        if tensor.data_location != TensorProto.EXTERNAL:
            return bytes(tensor.raw_data) or onnx.numpy_helper.to_array(tensor).tobytes()
        where = external_range(tensor, self.folder, self.file, hard_links=True)
        with where.path.open("rb") as stream:
            stream.seek(where.offset)
            return stream.read(where.length)


def bundle_graph(bundle: Bundle, file: str, data: Collection[str]) -> BundleGraph:
    """A graph of a bundle, after all its files were hash-checked.

    Args:
        file: its path under ``onnx/``.
        data: the data files that the manifest lists for it, likewise.

    Raises:
        BadInput: it reads a file that is not listed, or see `checked_model`.
        VerificationFailed: a file differs from its hash.
    """
    path = bundle.onnx_model(file, tuple(data))
    content = bundle.read(f"onnx/{file}")
    parent = PurePosixPath(file).parent
    listed = {
        PurePosixPath(name).relative_to(parent).as_posix()
        for name in data
        if PurePosixPath(name).is_relative_to(parent)
    }
    model = checked_model(content, path.parent, file, listed)
    folder = follow_links(model, path.parent)
    if folder != path.parent:
        content = model.SerializeToString()
    return BundleGraph(model, content, folder, file)


def follow_links(model: onnx.ModelProto, folder: Path) -> Path:
    """Name a checked graph's external data by the files that links lead to; libraries refuse links.

    Returns:
        What its locations are relative to: `folder`, or the Hugging Face hub's cache around it.
    """
    cache = hub_cache_of(folder)
    if cache is None:
        return folder
    for entry in (entry for tensor in all_tensors(model) for entry in tensor.external_data):
        if entry.key == "location":
            entry.value = (folder / entry.value).resolve().relative_to(cache).as_posix()
    return cache


def checked_model(
    data: bytes, folder: Path, where: str, listed: Collection[str] | None = None
) -> onnx.ModelProto:
    """Decode a graph and check all of it.

    Args:
        data: serialised model.
        folder: what the locations of external data are relative to.
        where: name of the graph, for errors.
        listed: locations that external data may have, of files whose hash was checked; any inside
            `folder` where None, except hard links.

    Raises:
        BadInput: too large, no ONNX model, a node of an unexpected domain, or a tensor whose data
            is not inside its file, not of its size, outside `folder`, or in a file that is not
            listed.
    """
    if not data or len(data) > MAX_BYTES:
        raise BadInput(f"an ONNX file of {len(data)} bytes", where=where)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, RecursionError, ValueError):
        raise BadInput("not an ONNX file", where=where, fix="export it again") from None
    if not all(isinstance(text, str) for text in _texts(model)):
        raise BadInput("an ONNX file with text that is not UTF-8", where=where)
    if not model.HasField("graph") or not model.opset_import:
        raise BadInput("an ONNX file without graph or opset", where=where)
    domains = {opset.domain for opset in model.opset_import}
    domains |= {function.domain for function in model.functions}
    for node in all_nodes(model):
        if node.domain not in ALLOWED_DOMAINS:
            raise BadInput(
                f"node {node.name!r} is of the unexpected domain {node.domain!r}", where=where
            )
    if domains - ALLOWED_DOMAINS:
        raise BadInput(f"unexpected domain {min(domains - ALLOWED_DOMAINS)!r}", where=where)
    for tensor in all_tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            external_range(tensor, folder, where, listed, hard_links=listed is not None)
        else:
            _check_embedded(tensor, where)
    return model


def _texts(model: onnx.ModelProto) -> Iterator[object]:
    """Every name of a graph; protobuf hands out bytes for one that is not UTF-8."""
    graph = model.graph
    for value in (*model.opset_import, *model.functions):
        yield value.domain
    for value in (*graph.input, *graph.output, *graph.value_info, *model.functions):
        yield value.name
    for node in all_nodes(model):
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        for attribute in node.attribute:
            yield attribute.name
    for tensor in all_tensors(model):
        yield tensor.name
        for entry in tensor.external_data:
            yield from (entry.key, entry.value)


def external_range(
    tensor: TensorProto,
    folder: Path,
    where: str,
    listed: Collection[str] | None = None,
    *,
    hard_links: bool = False,
) -> DataRange:
    """Where the bytes of an external tensor lie.

    Raises:
        BadInput: see `checked_model`.
    """

    def refuse(what: str) -> BadInput:
        return BadInput(f"external data of {tensor.name!r}: {what}", where=where)

    fields: dict[str, str] = {}
    for entry in tensor.external_data:
        if entry.key in fields or entry.key not in _KEYS:
            raise refuse(f"repeated or unknown key {entry.key!r}")
        fields[entry.key] = entry.value
    if tensor.data_location != TensorProto.EXTERNAL or not fields.get("location"):
        raise refuse("no location")
    if listed is not None and fields["location"] not in listed:
        raise refuse(f"reads {fields['location']!r}, which the manifest does not list")
    numbers = {}
    for key in ("offset", "length"):
        text = fields.get(key, "0" if key == "offset" else "")
        # int() also takes signs, spaces, underscores and other scripts' digits.
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise refuse(f"{key} is {text!r}")
        numbers[key] = int(text)
    path = confined_file(folder, fields["location"], hard_links=hard_links)
    if numbers["length"] != tensor_bytes(tensor, where):
        raise refuse(
            f"{numbers['length']} bytes, dtype and shape call for {tensor_bytes(tensor, where)}"
        )
    if numbers["offset"] + numbers["length"] > path.stat().st_size:
        raise refuse(f"ends beyond {path.name}")
    return DataRange(path, numbers["offset"], numbers["length"])


def external_bytes(model: onnx.ModelProto, folder: Path) -> int:
    """Bytes of external data that a checked model refers to."""
    return sum(
        external_range(tensor, folder, tensor.name).length
        for tensor in all_tensors(model)
        if tensor.data_location == TensorProto.EXTERNAL
    )


def tensor_bytes(tensor: TensorProto, where: str) -> int:
    """Bytes that dtype and shape of a tensor call for.

    Raises:
        BadInput: unknown dtype or a negative dimension.
    """
    bits = _BITS.get(tensor.data_type)
    if bits is None or any(size < 0 for size in tensor.dims):
        raise BadInput(f"dtype or shape of {tensor.name!r} is invalid", where=where)
    elements: int = math.prod(tensor.dims)
    return packed_bytes(elements, bits)


def _check_embedded(tensor: TensorProto, where: str) -> None:
    if tensor.data_type == TensorProto.STRING:
        return
    need = tensor_bytes(tensor, where)
    if tensor.HasField("raw_data"):
        held, unit = len(tensor.raw_data), "bytes"
    else:
        held, unit = len(getattr(tensor, _FIELDS.get(tensor.data_type, "int32_data"))), "numbers"
        # Two of four bits share one number; else each element has its own.
        need = min(need, math.prod(tensor.dims))
    if held != need:
        raise BadInput(f"tensor {tensor.name!r} holds {held} {unit}, not {need}", where=where)


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of the graph, its subgraphs and its functions."""
    yield from _nodes(model.graph.node)
    for function in model.functions:
        yield from _nodes(function.node)


def _nodes(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in _subgraphs(attribute):
                yield from _nodes(graph.node)


def _subgraphs(attribute: AttributeProto) -> Iterator[onnx.GraphProto]:
    if attribute.HasField("g"):
        yield attribute.g
    yield from attribute.graphs


def all_tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every tensor that is stored in the model, at every depth."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)
        for attribute in function.attribute_proto:
            yield from _attribute_tensors(attribute)
    for training in model.training_info:
        yield from _graph_tensors(training.initialization)
        yield from _graph_tensors(training.algorithm)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Sequence[onnx.NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from _attribute_tensors(attribute)


def _attribute_tensors(attribute: AttributeProto) -> Iterator[TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    sparse = list(attribute.sparse_tensors)
    if attribute.HasField("sparse_tensor"):
        sparse.append(attribute.sparse_tensor)
    for tensor in sparse:
        yield from (tensor.values, tensor.indices)
    for graph in _subgraphs(attribute):
        yield from _graph_tensors(graph)
