"""Cache of finished parts of an export, keyed by what they are made of.

Two kinds of entries, each a folder of files with ``record.json``: the NVFP4 weight of a linear
(key: the bytes of its checkpoint tensors) and the transformer's graph (key: its configuration).
Every key holds the package's source and the versions of its libraries too. A build that was killed
finds what it had finished; one with another option finds what does not depend on it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastwan
from fastwan.files import atomic_dir, sha256_file

DEFAULT_MAX_BYTES = 6 << 30
_RECORD = "record.json"
_PAYLOAD = "tensors"
_ALIGNMENT = 16
_LIBRARIES = ("torch", "onnx", "onnxscript", "onnx-ir", "nvidia-modelopt", "ml_dtypes", "numpy")
_PACKAGE = Path(fastwan.__file__).resolve().parent
_MAKES_NO_GRAPH = ("cli.py", "doctor.py", "engines", "quality", "runtime")
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
        folder: where they lie.
        max_bytes: above this `prune` removes the entries that were used longest ago.
    """

    def __init__(self, folder: Path, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.folder = folder
        self._max_bytes = max_bytes

    def files(self, key: str) -> tuple[Path, dict[str, Any]] | None:
        """Folder of an entry and what was noted with it; None where there is none.

        An entry that differs from its hashes is removed.
        """
        entry = self.folder / key
        try:
            record = json.loads((entry / _RECORD).read_text(encoding="utf-8"))
            hashes = record["sha256"]
            intact = all(sha256_file(entry / name) == digest for name, digest in hashes.items())
            note = dict(record["note"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            intact = False
        if not intact:
            shutil.rmtree(entry, ignore_errors=True)
            return None
        os.utime(entry / _RECORD)
        return entry, note

    def put(
        self, key: str, contents: Mapping[str, bytes | Path], note: Mapping[str, object]
    ) -> None:
        """Store an entry, whole or not at all; one that is there already is left alone.

        Args:
            contents: bytes, or the file to copy them from, by file name.
        """
        entry = self.folder / key
        if entry.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with atomic_dir(entry, replace_marker=_RECORD) as temporary:
            for name, content in contents.items():
                if isinstance(content, Path):
                    shutil.copyfile(content, temporary / name)
                else:
                    (temporary / name).write_bytes(content)
            hashes = {name: sha256_file(temporary / name) for name in contents}
            record = json.dumps({"sha256": hashes, "note": note})
            (temporary / _RECORD).write_text(record, encoding="utf-8")

    def tensors(self, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors stored by `put_tensors` and their note."""
        found = self.files(key)
        if found is None:
            return None
        entry, note = found
        raw = np.fromfile(entry / _PAYLOAD, np.uint8)
        tensors = {}
        for name, dtype, shape, begin, size in note.pop("tensors"):
            part = torch.from_numpy(raw[begin : begin + size])
            tensors[name] = part.view(getattr(torch, dtype)).reshape(shape)
        return tensors, note

    def put_tensors(
        self, key: str, tensors: Mapping[str, Tensor], note: Mapping[str, object]
    ) -> None:
        """Store tensors as one file."""
        parts: list[bytes | memoryview] = []
        table, offset = [], 0
        for name, tensor in tensors.items():
            raw = tensor_bytes(tensor)
            kind = str(tensor.dtype).removeprefix("torch.")
            table.append((name, kind, list(tensor.shape), offset, raw.nbytes))
            # Each begins at a multiple of its element size.
            parts += [raw, b"\0" * (-raw.nbytes % _ALIGNMENT)]
            offset += raw.nbytes + len(parts[-1])
        self.put(key, {_PAYLOAD: b"".join(parts)}, {**note, "tensors": table})

    def prune(self) -> None:
        """Remove what killed builds left, and entries used longest ago until the rest fits."""
        entries = []
        for entry in self.folder.glob("*"):
            try:
                record = entry / _RECORD
                size = sum(file.stat().st_size for file in entry.iterdir())
                entries.append((record.stat().st_mtime_ns, size, entry))
            except OSError:
                continue  # removed by another process, or not yet whole
        total = sum(size for _, size, _ in entries)
        for _, size, entry in sorted(entries):
            if total <= self._max_bytes:
                return
            shutil.rmtree(entry, ignore_errors=True)
            total -= size
