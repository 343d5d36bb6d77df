"""Cache of finished parts of an export, keyed by what they are made of.

Three kinds of entries, each a folder of files with ``record.json``: the NVFP4 weight of a linear
(key: the bytes of its checkpoint tensors), the transformer's graph (key: its configuration) and the
decoder (both). Every key holds the exporter's own source and the versions of its libraries too. A
build that was killed finds what it had finished; one with another option finds what does not
depend on it.
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

from fastwan import __version__
from fastwan.files import atomic_dir, sha256_file

DEFAULT_MAX_BYTES = 6 << 30
_RECORD = "record.json"
_PAYLOAD = "tensors"
_ALIGNMENT = 16
_OF_LINEARS = ("cache.py", "code_table.py", "quantize.py", "weights.py")
_LIBRARIES = ("torch", "onnx", "onnxscript", "onnx-ir", "nvidia-modelopt")


@cache
def fingerprint(kind: str) -> str:
    """Hash of what makes entries of a kind: source files, and the versions of what they call."""
    package = Path(__file__).resolve().parent
    files = sorted(package.glob("*.py") if kind == "linear" else package.rglob("*.py"))
    if kind == "linear":
        files = [path for path in files if path.name in _OF_LINEARS]
    files += [package.parent / "plugins" / name for name in ("nvfp4.py", "reference.py")]
    digest = hashlib.sha256(__version__.encode())
    for path in files:
        digest.update(path.relative_to(package.parent).as_posix().encode())
        digest.update(path.read_bytes())
    for name in _LIBRARIES:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        digest.update(f"{name}={version};".encode())
    return digest.hexdigest()


def content_key(
    kind: str, facts: Mapping[str, object], tensors: Iterable[tuple[str, Tensor]] = ()
) -> str:
    """Key of an entry.

    Args:
        kind: sort of entry.
        facts: whatever it depends on beside the exporter and `tensors`; JSON-able.
        tensors: checkpoint tensors it is made of, by name.
    """
    head = json.dumps([kind, fingerprint(kind), facts], sort_keys=True)
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
