"""Reproducible ONNX files: external data, checked atomic saving.

Two exports of the same checkpoint give the same bytes on every machine: nothing of the exporter
(stack traces, paths, versions) is kept, initializers are sorted by name, and a data file holds
its tensors in the order in which they were added, each at an aligned offset.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import torch

from fastwan.errors import BadInput
from fastwan.staging import atomic_file

OPSET = 23
IR_VERSION = 11
"""ONNX IR of opset 23 and of FLOAT4E2M1; ONNX Runtime and TensorRT-RTX read it."""

ALIGNMENT = 4096
"""Offset alignment in bytes of the tensors in a data file: a page, so that they can be mapped."""

EXTERNAL_THRESHOLD = 1024
"""Initializers larger than this many bytes go to the data file."""

_TORCH_TO_ONNX = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.float8_e4m3fn: ir.DataType.FLOAT8E4M3FN,
    torch.uint8: ir.DataType.UINT8,
    torch.int32: ir.DataType.INT32,
    torch.int64: ir.DataType.INT64,
}


class TensorSource(Protocol):
    """What an exporter reads a checkpoint through: one tensor at a time, by name."""

    def names(self) -> Sequence[str]:
        """Names of all tensors."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""

    def read(self, name: str) -> torch.Tensor:
        """A tensor in the dtype in which the checkpoint stores it."""


class DataWriter:
    """Appends tensors to one external data file; made by `data_file`.

    Args:
        stream: open binary file that the bytes go to.
        path: where the data file will be, in the folder of the ONNX file.
    """

    def __init__(self, stream: IO[bytes], path: Path) -> None:
        self._stream = stream
        self._path = path

    def add(
        self,
        name: str,
        tensor: torch.Tensor,
        *,
        dtype: ir.DataType | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> ir.ExternalTensor:
        """Append `tensor` and return its reference.

        Args:
            tensor: any dense tensor; only its bytes are written.
            dtype: ONNX type of the bytes; needed for packed types such as FLOAT4E2M1.
            shape: shape in elements of `dtype`, when the tensor holds packed bytes.
        """
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        kind = _TORCH_TO_ONNX[tensor.dtype] if dtype is None else dtype
        return self._append(name, raw, kind, tuple(tensor.shape) if shape is None else shape)

    def add_ir(self, name: str, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        """Append a tensor of a graph."""
        raw = np.frombuffer(tensor.tobytes(), np.uint8)
        return self._append(name, raw, tensor.dtype, tuple(tensor.shape.numpy()))

    def _append(
        self, name: str, raw: np.ndarray, dtype: ir.DataType, shape: tuple[int, ...]
    ) -> ir.ExternalTensor:
        offset = -(-self._stream.tell() // ALIGNMENT) * ALIGNMENT
        self._stream.write(b"\0" * (offset - self._stream.tell()))
        self._stream.write(raw.data)
        return ir.ExternalTensor(
            self._path.name,
            offset,
            raw.nbytes,
            dtype,
            shape=ir.Shape(shape),
            name=name,
            base_dir=self._path.parent,
        )


def attach(value: ir.Value, tensor: torch.Tensor, writer: DataWriter) -> ir.ExternalTensor:
    """Give an initializer its data: type and shape are the graph's, the bytes the tensor's.

    That of a finished graph, which refers to its data, is written where the graph says.

    Raises:
        BadInput: the tensor is not of that type and size; values of less than a byte are uint8.
    """
    assert value.shape is not None
    assert value.dtype is not None
    shape = tuple(value.shape.numpy())
    size = math.prod(shape) * value.dtype.bitwidth // 8
    kind = _TORCH_TO_ONNX[tensor.dtype]
    packed = kind == ir.DataType.UINT8 and value.dtype.bitwidth < 8
    if tensor.nbytes != size or not (packed or kind == value.dtype):
        raise BadInput(
            f"{tensor.dtype} {list(tensor.shape)} is no {value.dtype.name} {list(shape)}",
            where=str(value.name),
            fix="a recipe stores what its buffers say",
        )
    written = writer.add(str(value.name), tensor, dtype=value.dtype, shape=shape)
    known = value.const_value
    if isinstance(known, ir.ExternalTensor):
        # The order in which the tensors are added decides where each lies.
        assert (known.offset, known.length) == (written.offset, written.length), value.name
    value.const_value = written
    return written


@contextmanager
def data_file(path: Path) -> Iterator[DataWriter]:
    """Open an external data file for writing; it is at `path` only when the body succeeds."""
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        yield DataWriter(stream, path)


def strip(model: ir.Model) -> None:
    """Remove everything that tells where and with what the model was made, at every depth."""
    model.producer_name = "fastwan-export"
    model.producer_version = None
    model.domain = None
    model.model_version = None
    model.doc_string = None
    model.ir_version = IR_VERSION
    model.metadata_props.clear()
    for graph in model.graphs():
        _strip_graph(graph)
    for function in model.functions.values():
        function.doc_string = None
        function.metadata_props.clear()
        for node in ir.traversal.RecursiveGraphIterator(function):
            _strip_node(node)


def _strip_graph(graph: ir.Graph) -> None:
    graph.doc_string = None
    graph.metadata_props.clear()
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        _strip_value(value)
    for node in graph:
        _strip_node(node)


def _strip_node(node: ir.Node) -> None:
    node.doc_string = None
    node.metadata_props.clear()
    for attribute in node.attributes.values():
        attribute.doc_string = None
    for value in node.outputs:
        _strip_value(value)


def _strip_value(value: ir.Value) -> None:
    value.doc_string = None
    value.metadata_props.clear()
    tensor = value.const_value
    if isinstance(tensor, ir.serde.TensorProtoTensor):
        # Read from a file; its fields cannot be set. Keep the bytes, drop the rest.
        value.const_value = ir.Tensor(
            tensor.numpy(), dtype=tensor.dtype, shape=tensor.shape, name=tensor.name
        )
    elif tensor is not None:
        tensor.doc_string = None
        tensor.metadata_props.clear()


def save_model(model: ir.Model, path: Path, *, data: DataWriter | Path | None = None) -> None:
    """Strip, check and write a model; `path` appears only when all of it succeeded.

    The initializers are left as references to external data where they are larger than
    `EXTERNAL_THRESHOLD`; those already external are taken as they are.

    Args:
        model: changed in place (stripped, initializers sorted and made external).
        path: the ``.onnx`` file; its data files lie in the same folder.
        data: where large initializers that are still in memory go: the path of a new data
            file beside `path`, or the writer of one that is being written. With a writer call
            `save_model` after the `data_file` block, and `externalize` inside it.

    Raises:
        BadInput: an initializer has no value, or the ONNX checker refuses the model.
    """
    strip(model)
    if isinstance(data, Path):
        with data_file(data) as writer:
            externalize(model, writer)
    _sort_initializers(model.graph)
    proto = ir.to_proto(model)
    try:
        # Under its own name: the checker looks for the data files beside it.
        path.write_bytes(proto.SerializeToString(deterministic=True))
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError) as error:
        path.unlink()
        raise BadInput(f"the exported graph is invalid: {error}", where=path.name) from None
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def externalize(model: ir.Model, writer: DataWriter) -> None:
    """Move large in-memory initializers to a data file, in the order of their names."""
    for name, value in sorted(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None:
            raise BadInput("initializer has no value", where=name)
        if not isinstance(tensor, ir.ExternalTensor) and tensor.nbytes > EXTERNAL_THRESHOLD:
            value.const_value = writer.add_ir(name, tensor)


def _sort_initializers(graph: ir.Graph) -> None:
    values = [graph.initializers[name] for name in sorted(graph.initializers)]
    graph.initializers.clear()
    for value in values:
        if value.const_value is None:
            raise BadInput("initializer has no value", where=str(value.name))
        graph.register_initializer(value)


def torch_tensor(tensor: ir.TensorProtocol) -> torch.Tensor:
    """Value of a graph tensor as a torch tensor; FLOAT8E4M3FN and BFLOAT16 included."""
    array = np.array(tensor.numpy())
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    if array.dtype == ml_dtypes.float8_e4m3fn:
        return torch.from_numpy(array.view(np.uint8)).view(torch.float8_e4m3fn)
    return torch.from_numpy(array)
