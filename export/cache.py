"""Cache of finished parts of an export, keyed by what they are made of.

Two kinds of entries: the NVFP4 weight of a linear
(key: the bytes of its checkpoint tensors) and the transformer's graph (key: its configuration).
Every key holds the package's source and the versions of its libraries too. A build that was killed
finds what it had finished; one with another option finds what does not depend on it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastwan
from fastwan.cache_entry import Record
from fastwan.content_cache import ContentCache

_PAYLOAD = "tensors"
_ALIGNMENT = 16
_LIBRARIES = ("torch", "onnx", "onnxscript", "onnx-ir", "nvidia-modelopt", "ml_dtypes", "numpy")
_PACKAGE = Path(fastwan.__file__).resolve().parent
_MAKES_NO_GRAPH = (
    "__main__.py",
    "cli.py",
    "commands",
    "doctor.py",
    "engines",
    "quality",
    "runtime",
)
"""Parts of the package that build, play or judge what an export made; export/ imports none."""


def graph_sources(package: Path) -> list[Path]:
    """Python files of a copy of the package that may decide what a graph or a weight becomes.

    Found by walking it, so that a module that moves or comes is covered. Links are followed: in a
    checkout the stages are links.

    Returns:
        Paths relative to `package`, sorted.
    """
    found = [
        Path(folder, name).relative_to(package)
        for folder, _, names in os.walk(package, followlinks=True)
        for name in names
        if name.endswith(".py")
    ]
    return sorted(path for path in found if path.parts[0] not in _MAKES_NO_GRAPH)


def fingerprint(package: Path) -> str:
    """Hash of the code that makes entries: `graph_sources`, and the versions of what they call.

    Args:
        package: a copy of the package's folder.
    """
    digest = hashlib.sha256(fastwan.__version__.encode())
    for path in graph_sources(package):
        digest.update(f"{path.as_posix()}\0".encode())
        digest.update(hashlib.sha256((package / path).read_bytes()).digest())
    for name in _LIBRARIES:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        digest.update(f"{name}={version};".encode())
    return digest.hexdigest()


@cache
def _own_fingerprint() -> str:
    return fingerprint(_PACKAGE)


def content_key(
    kind: str, facts: Mapping[str, object], tensors: Iterable[tuple[str, Tensor]] = ()
) -> str:
    """Key of an entry.

    Args:
        kind: sort of entry.
        facts: whatever it depends on beside the exporter and `tensors`; JSON-able.
        tensors: checkpoint tensors it is made of, by name.
    """
    head = json.dumps([kind, _own_fingerprint(), facts], sort_keys=True)
    digest = hashlib.sha256(head.encode())
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, without a copy where it is contiguous."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data


class ExportCache:
    """Entries by key.

    Args:
        root: see `ContentCache`.
        max_bytes: see `ContentCache`.
    """

    def __init__(self, root: Path | None = None, max_bytes: int | None = None) -> None:
        self._cache = ContentCache("exports", root, max_bytes)

    def copy(self, key: str, folder: Path) -> Record | None:
        """Copy the files of an entry into `folder`; None, and no file, where there is none whole.

        Raises:
            OSError: a copy cannot be written.
        """
        return self._cache.copy(key, folder.joinpath)

    def put(
        self, key: str, contents: Mapping[str, bytes | Path], note: Mapping[str, object]
    ) -> None:
        """Store an entry, whole or not at all.

        Args:
            contents: bytes, or the file to copy them from, by file name.
        """
        self._cache.put(key, contents, note)

    def tensors(self, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors stored by `put_tensors` and their note."""
        found = self._cache.read(key)
        if found is None:
            return None
        contents, note = found
        try:
            return _cut(contents[_PAYLOAD], note.pop("tensors")), note
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):
            # Whole, but not what this version stores: as good as none.
            self._cache.forget(key)
            return None

    def put_tensors(
        self, key: str, tensors: Mapping[str, Tensor], note: Mapping[str, object]
    ) -> None:
        """Store tensors as one file."""
        parts: list[bytes | memoryview] = []
        table = []
        for name, tensor in tensors.items():
            raw = tensor_bytes(tensor)
            kind = str(tensor.dtype).removeprefix("torch.")
            table.append((name, kind, list(tensor.shape)))
            # Each begins at a multiple of its element size.
            parts += [raw, b"\0" * (-raw.nbytes % _ALIGNMENT)]
        self.put(key, {_PAYLOAD: b"".join(parts)}, {**note, "tensors": table})


def _cut(raw: bytearray, table: list[tuple[str, str, list[int]]]) -> dict[str, Tensor]:
    """The tensors of a file. Where each begins follows from those before it, to the last byte."""
    whole = torch.from_numpy(np.frombuffer(raw, np.uint8))
    tensors, offset = {}, 0
    for name, kind, shape in table:
        dtype = getattr(torch, kind)
        size = math.prod(shape) * dtype.itemsize
        tensors[name] = whole[offset : offset + size].view(dtype).reshape(shape)
        offset += size + -size % _ALIGNMENT
    if offset != len(raw):
        raise ValueError("the table of tensors does not fit their bytes")
    return tensors
