"""One view over the tensors of a component, however many files and formats they come in."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from fastwan.errors import BadInput
from fastwan.export.checkpoint.safetensors_io import TensorFile
from fastwan.files import is_plain_file
from fastwan.strict_json import read_json

_INDEX = re.compile(r".*\.safetensors\.index(\.\w+)?\.json")  # with or without a variant
FLOAT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""Dtypes that weights may have; everything is computed from these."""


class _Info(Protocol):
    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


class _Source(Protocol):
    path: Path

    @property
    def names(self) -> tuple[str, ...]: ...

    def info(self, name: str) -> _Info: ...

    def read(self, name: str) -> torch.Tensor: ...

    def read_rows(self, name: str, begin: int, end: int) -> torch.Tensor: ...


@dataclass(frozen=True)
class _TorchInfo:
    dtype: torch.dtype
    shape: tuple[int, ...]


class TorchFile:
    """A ``.pth``/``.pt`` state dict, loaded with ``weights_only=True`` and kept in memory.

    Raises:
        BadInput: the file holds anything but a flat table of dense tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # torch warns of what it then refuses.
            with warnings.catch_warnings(action="ignore"):
                state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a hostile file can make the unpickler raise anything
            raise BadInput(
                f"cannot be loaded with weights_only=True: {str(error).splitlines()[0][:160]}"
                if str(error)
                else "cannot be loaded with weights_only=True",
                where=str(path),
                fix="convert it to safetensors",
            ) from None
        if not isinstance(state, dict) or not state:
            raise BadInput("holds no state dict", where=str(path))
        for name, value in state.items():
            if not isinstance(name, str) or not isinstance(value, torch.Tensor):
                raise BadInput("entry is no tensor", where=f"{path}: {str(name)[:120]}")
            if value.layout != torch.strided or value.is_quantized:
                raise BadInput("tensor is not dense", where=f"{path}: {name}")
        self._state: dict[str, torch.Tensor] = state

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._state)

    def info(self, name: str) -> _TorchInfo:
        tensor = self._state[name]
        return _TorchInfo(tensor.dtype, tuple(tensor.shape))

    def read(self, name: str) -> torch.Tensor:
        return self._state[name].detach().clone(memory_format=torch.contiguous_format)

    def read_rows(self, name: str, begin: int, end: int) -> torch.Tensor:
        rows = self._state[name].detach()[begin:end]
        return rows.clone(memory_format=torch.contiguous_format)


class TensorStore:
    """Tensors by name over one or many files.

    `read` and `read_rows` return fresh tensors in the shape and dtype of the file, and refuse
    NaN and Inf. Safe to use from several threads.

    Args:
        entries: file and stored name by name.
        dtype: what the values are going to be converted to; those that become Inf are refused.
    """

    def __init__(
        self,
        entries: Mapping[str, tuple[_Source, str]],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._entries = dict(entries)
        self._dtype = dtype

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def names(self) -> tuple[str, ...]:
        """All names, in the order of the files."""
        return tuple(self._entries)

    @property
    def files(self) -> tuple[Path, ...]:
        """The weight files behind the store, each once, in a fixed order."""
        return tuple(dict.fromkeys(source.path for source, _ in self._entries.values()))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        source, stored = self._entry(name)
        return source.info(stored).shape

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor in its file, without reading it."""
        source, stored = self._entry(name)
        return source.info(stored).dtype

    def nbytes(self, name: str) -> int:
        """Bytes of a tensor in its file."""
        count = self.dtype(name).itemsize
        for size in self.shape(name):
            count *= size
        return count

    def where(self, name: str) -> str:
        """File and stored name of a tensor, for an error message."""
        source, stored = self._entry(name)
        return f"{source.path}: {stored}"

    def read(self, name: str) -> torch.Tensor:
        """A whole tensor.

        Raises:
            BadInput: there is none, its file is damaged, or it holds NaN or Inf.
        """
        source, stored = self._entry(name)
        return self._finite(name, source.read(stored))

    def read_rows(self, name: str, begin: int, end: int) -> torch.Tensor:
        """Rows `begin` to `end` (exclusive) of the first dimension; raises as `read` does."""
        source, stored = self._entry(name)
        shape = source.info(stored).shape
        if not shape or not 0 <= begin <= end <= shape[0]:
            raise BadInput(
                f"rows {begin}:{end} are outside shape {list(shape)}", where=self.where(name)
            )
        return self._finite(name, source.read_rows(stored, begin, end))

    def renamed(self, rename: Callable[[str], str]) -> TensorStore:
        """The same tensors under other names.

        Raises:
            BadInput: two tensors get the same name.
        """
        entries: dict[str, tuple[_Source, str]] = {}
        for name, entry in self._entries.items():
            canonical = rename(name)
            if canonical in entries:
                other = entries[canonical][1]
                raise BadInput(
                    f"{entry[1]} and {other} are both {canonical}", where=str(entry[0].path)
                )
            entries[canonical] = entry
        return TensorStore(entries, self._dtype)

    def within(self, dtype: torch.dtype) -> TensorStore:
        """The same tensors, for use in `dtype`: reading refuses what it cannot hold."""
        return TensorStore(self._entries, dtype)

    def without(self, dropped: Callable[[str], bool]) -> TensorStore:
        """The store less the tensors for whose name `dropped` is true."""
        kept = {name: entry for name, entry in self._entries.items() if not dropped(name)}
        return TensorStore(kept, self._dtype)

    def _entry(self, name: str) -> tuple[_Source, str]:
        try:
            return self._entries[name]
        except KeyError:
            where = str(self.files[0].parent) if self._entries else ""
            raise BadInput(f"tensor {name} is missing", where=where) from None

    def _finite(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel() == 0 or not tensor.is_floating_point():
            return tensor
        values = tensor.float() if tensor.dtype.itemsize == 1 else tensor
        # NaN propagates through aminmax, so two numbers tell, and no mask is allocated.
        low, high = torch.aminmax(values)
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise BadInput("tensor holds NaN or Inf", where=self.where(name))
        if not torch.isfinite(torch.stack([low, high]).to(self._dtype)).all():
            raise BadInput(
                f"tensor holds a value beyond {str(self._dtype).removeprefix('torch.')}, which "
                "is what it is used in",
                where=self.where(name),
                fix="such a weight is damage; fetch the file again",
            )
        return tensor


def open_store(path: Path) -> TensorStore:
    """Open a ``.safetensors`` file, a ``.safetensors.index.json`` or a ``.pth``/``.pt`` file.

    Raises:
        BadInput: not there, of another kind, or damaged.
    """
    if not is_plain_file(path):
        raise BadInput("weight file is missing", where=str(path))
    if _INDEX.fullmatch(path.name):
        return _open_sharded(path)
    source: _Source
    if path.suffix == ".safetensors":
        source = TensorFile(path)
    elif path.suffix in (".pth", ".pt"):
        source = TorchFile(path)
    else:
        raise BadInput(
            "unknown kind of weight file",
            where=str(path),
            fix="give .safetensors, .safetensors.index.json, .pth or .pt",
        )
    return TensorStore({name: (source, name) for name in source.names})


def _open_sharded(index: Path) -> TensorStore:
    weight_map: Any = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadInput("index has no weight_map", where=str(index))
    shards: dict[str, TensorFile] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _stays_inside(shard):
            raise BadInput(
                f"shard {str(shard)[:120]!r} is outside the index's folder",
                where=f"{index}: {name}",
            )
        if shard not in shards:
            if not is_plain_file(index.parent / shard):
                raise BadInput("shard is missing", where=str(index.parent / shard))
            shards[shard] = TensorFile(index.parent / shard)
    entries: dict[str, tuple[_Source, str]] = {}
    for shard, source in shards.items():
        for name in source.names:
            if weight_map.get(name) != shard:
                raise BadInput(
                    "tensor is in a shard that the index does not name for it",
                    where=f"{source.path}: {name}",
                )
            entries[name] = (source, name)
    for name, shard in weight_map.items():
        if name not in entries:
            raise BadInput(f"tensor is not in its shard {shard}", where=f"{index}: {name}")
    return TensorStore(entries)


def _stays_inside(relative: str) -> bool:
    # A symbolic link is fine: the Hugging Face cache is made of them.
    path = Path(relative)
    return bool(
        path.parts
        and not path.is_absolute()
        and ".." not in path.parts
        and "\\" not in relative
        and "\0" not in relative
        and path.suffix == ".safetensors"
    )
