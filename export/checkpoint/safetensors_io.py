"""A strict safetensors reader and a streaming writer.

The format (huggingface/safetensors, README "Format"): an unsigned 64-bit little-endian header
length, a JSON header that gives dtype, shape and byte range of each tensor, then the bytes.

Files are read by offset with plain reads. A mapping would be shorter, but the pages of an open
mapping count as resident, and a checkpoint is larger than the memory a build may take.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from fastwan.errors import BadInput
from fastwan.files import open_regular
from fastwan.strict_json import parse_json, quoted

MAX_HEADER_BYTES = 100_000_000
"""Upper bound of the header's length; the safetensors library has the same."""

_MAX_RANK = 8
_MAX_DIMENSION = 1 << 40
_LENGTH = struct.Struct("<Q")

# In the order of the library's dtype enumeration, by which it lays tensors out in a file.
DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
}
_NAME_OF = {dtype: name for name, dtype in DTYPES.items()}
_RANK_OF = {dtype: rank for rank, dtype in enumerate(DTYPES.values())}


@dataclass(frozen=True)
class TensorInfo:
    """Type, shape and place of a tensor; `begin` and `end` are byte offsets in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class TensorFile:
    """A validated safetensors file.

    The header is checked completely before anything else: its length, its JSON, and for every
    tensor the dtype, the shape and the byte range; the ranges tile the data without gap, overlap
    or bytes left over.

    Raises:
        BadInput: on the first fault, naming the file and, where there is one, the tensor.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, str] = {}
        try:
            with open_regular(path) as stream:
                size = stream.seek(0, 2)
                stream.seek(0)
                header, data_begin = self._header(stream.read(_LENGTH.size), size, stream.read)
        except OSError as error:
            raise BadInput(f"cannot be read: {error.strerror}", where=str(path)) from None
        self._infos = self._tensors(header, data_begin, size)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors in the order of their data."""
        return tuple(self._infos)

    def info(self, name: str) -> TensorInfo:
        """Dtype, shape and byte range of a tensor. Raises BadInput if there is none."""
        try:
            return self._infos[name]
        except KeyError:
            raise self._bad("tensor is missing", name) from None

    def read(self, name: str) -> torch.Tensor:
        """A tensor in the shape and dtype of the file; its memory belongs to the caller."""
        info = self.info(name)
        return self._read(name, info.begin, info.end).view(info.dtype).reshape(info.shape)

    def read_rows(self, name: str, begin: int, end: int) -> torch.Tensor:
        """Rows `begin` to `end` (exclusive) of a tensor's first dimension."""
        info = self.info(name)
        if not info.shape or not 0 <= begin <= end <= info.shape[0]:
            raise self._bad(f"rows {begin}:{end} are outside shape {list(info.shape)}", name)
        row = (info.end - info.begin) // info.shape[0] if info.shape[0] else 0
        data = self._read(name, info.begin + begin * row, info.begin + end * row)
        return data.view(info.dtype).reshape(end - begin, *info.shape[1:])

    def _read(self, name: str, begin: int, end: int) -> torch.Tensor:
        data = torch.empty(end - begin, dtype=torch.uint8)
        view: memoryview = data.numpy().data
        try:
            with self.path.open("rb", buffering=0) as stream:
                stream.seek(begin)
                while len(view):
                    count = stream.readinto(view)
                    if not count:
                        raise self._bad("file ended early; it changed while it was read", name)
                    view = view[count:]
        except OSError as error:
            raise self._bad(f"cannot be read: {error.strerror}", name) from None
        return data

    def _bad(self, what: str, name: str | None = None) -> BadInput:
        where = str(self.path) if name is None else f"{self.path}: {quoted(name)}"
        return BadInput(what, where=where)

    def _header(self, prefix: bytes, size: int, read: Any) -> tuple[dict[str, Any], int]:
        if len(prefix) < _LENGTH.size:
            raise self._bad("file is too short to be a safetensors file")
        (length,) = _LENGTH.unpack(prefix)
        if length > MAX_HEADER_BYTES:
            raise self._bad(f"header length {length} is beyond {MAX_HEADER_BYTES}")
        if length > size - _LENGTH.size:
            raise self._bad(f"header length {length} is beyond the end of the file (truncated?)")
        data = read(length)
        if data[:1] != b"{":
            raise self._bad("header does not begin with '{'")
        return parse_json(data, str(self.path)), _LENGTH.size + length

    def _tensors(self, header: dict[str, Any], data_begin: int, size: int) -> dict[str, TensorInfo]:
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(
            isinstance(value, str) for value in metadata.values()
        ):
            raise self._bad("__metadata__ is not a table of strings")
        self.metadata = metadata
        infos = {name: self._tensor(name, entry, data_begin) for name, entry in header.items()}
        ordered = sorted(infos.items(), key=lambda item: (item[1].begin, item[1].end))
        position = data_begin
        for name, info in ordered:
            if info.end > size:
                raise self._bad("data is beyond the end of the file (truncated?)", name)
            if info.begin != position:
                kind = "overlaps the tensor before it" if info.begin < position else "leaves a gap"
                raise self._bad(f"data {kind}", name)
            position = info.end
        if position != size:
            raise self._bad(f"{size - position} bytes follow the last tensor")
        return dict(ordered)

    def _tensor(self, name: str, entry: object, data_begin: int) -> TensorInfo:
        if not name.isprintable():
            raise self._bad("name is not printable", name)
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise self._bad("entry must have exactly dtype, shape and data_offsets", name)
        dtype_name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype_name, str) or dtype_name not in DTYPES:
            given = quoted(dtype_name) if isinstance(dtype_name, str) else "that is no string"
            raise self._bad(f"unknown dtype {given}", name)
        if not _is_shape(shape):
            raise self._bad("shape is not a short list of non-negative sizes", name)
        if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise self._bad("data_offsets are not [begin, end]", name)
        dtype = DTYPES[dtype_name]
        expected = dtype.itemsize * _product(shape)
        if offsets[1] - offsets[0] != expected:
            raise self._bad(
                f"{dtype_name} {shape} takes {expected} bytes, data_offsets give "
                f"{quoted(str(offsets[1] - offsets[0]))}",
                name,
            )
        return TensorInfo(dtype, tuple(shape), data_begin + offsets[0], data_begin + offsets[1])


def _whole_numbers(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _is_shape(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= _MAX_RANK
        and _whole_numbers(value)
        and max(value, default=0) <= _MAX_DIMENSION
    )


def _product(shape: Iterable[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


@dataclass(frozen=True)
class TensorSpec:
    """Dtype and shape of a tensor to be written."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * _product(self.shape)


def file_order(specs: Mapping[str, TensorSpec]) -> tuple[str, ...]:
    """Names in the order in which the safetensors library lays them out."""
    return tuple(sorted(specs, key=lambda name: (-_RANK_OF[specs[name].dtype], name)))


class SafetensorsWriter:
    """Writes a safetensors file without holding it: the header first, then tensor by tensor.

    Use as a context manager. Tensors are appended in the order of `names`, which is the order of
    the safetensors library: the file has the same bytes as ``safetensors.torch.save_file(tensors,
    path, {"format": "pt"})``.

    Args:
        path: file to create; a caller that wants it whole or not at all wraps it in `atomic_file`.
        specs: dtype and shape of every tensor.

    Raises:
        BadInput: a tensor out of order, of another size than its spec, or left out.
    """

    def __init__(self, path: Path, specs: Mapping[str, TensorSpec]) -> None:
        self.path = path
        self.names: Sequence[str] = file_order(specs)
        self._specs = dict(specs)
        self._next = 0
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        position = 0
        for name in self.names:
            spec = specs[name]
            header[name] = {
                "dtype": _NAME_OF[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [position, position + spec.nbytes],
            }
            position += spec.nbytes
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
        text += b" " * (-len(text) % 8)
        self.total_bytes = _LENGTH.size + len(text) + position
        self._stream = path.open("wb")
        self._stream.write(_LENGTH.pack(len(text)) + text)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Append a tensor; it must be the next of `names` and match its spec."""
        spec = self._specs.get(name)
        if spec is None or tensor.dtype != spec.dtype or tuple(tensor.shape) != spec.shape:
            raise BadInput("tensor does not match its spec", where=f"{self.path}: {name}")
        self.write_bytes(name, [tensor.contiguous().view(-1).view(torch.uint8).numpy().data])

    def write_bytes(self, name: str, chunks: Iterable[memoryview | bytes]) -> None:
        """Append a tensor given as consecutive buffers of its little-endian bytes."""
        if self._next >= len(self.names) or self.names[self._next] != name:
            raise BadInput("tensor is written out of order", where=f"{self.path}: {name}")
        written = 0
        for chunk in chunks:
            written += self._stream.write(chunk)
        if written != self._specs[name].nbytes:
            raise BadInput(
                f"{written} bytes written of {self._specs[name].nbytes}",
                where=f"{self.path}: {name}",
            )
        self._next += 1

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()
        if kind is None and self._next != len(self.names):
            raise BadInput("tensor was left out", where=f"{self.path}: {self.names[self._next]}")
