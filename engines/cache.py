"""Cache of built engines, keyed by content.

An entry is a folder ``<key>/`` with ``engine.plan`` and ``record.json``. The key is what the engine
is a function of: the graph without its remarks, the bytes of every weight it refers to, options,
target and versions. Where in a data file a weight lies is no part of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from filelock import FileLock
from onnx import TensorProto

from fastwan.bundle import TensorSpec
from fastwan.engines.backend import BuiltEngine
from fastwan.engines.layers import LayerRecord, layer_from_json
from fastwan.files import atomic_dir, default_cache_dir, sha256_file
from fastwan.onnx_guard import DataRange, all_nodes, all_tensors, external_range

SIZE_VARIABLE = "FASTWAN_CACHE_MAX_BYTES"
DEFAULT_MAX_BYTES = 20 << 30
SCHEMA = 1

_PLAN, _RECORD, _LOCK = "engine.plan", "record.json", ".lock"
_CHUNK = 4 << 20


@dataclass(frozen=True)
class CachedEngine:
    """A finished engine in the cache; what a `BuiltEngine` says, with the plan as a file."""

    plan: Path
    sha256: str
    bytes: int
    layers: tuple[LayerRecord, ...]
    scratch_bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class ContentHasher:
    """Hashes ranges of data files, each range once; segments share most of their files."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int, int, int], str] = {}

    def digest(self, where: DataRange) -> str:
        """Hex SHA-256 of the bytes of a range."""
        status = where.path.stat()
        key = (str(where.path), status.st_mtime_ns, status.st_size, where.offset, where.length)
        if key not in self._known:
            self._known[key] = self._read(where)
        return self._known[key]

    def _read(self, where: DataRange) -> str:
        # Read, not mapped: pages of a mapping would count as this process's memory.
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(min(_CHUNK, max(1, where.length))))
        with where.path.open("rb", buffering=0) as stream:
            stream.seek(where.offset)
            left = where.length
            while left > 0:
                count = stream.readinto(buffer[: min(left, len(buffer))])
                if not count:
                    break
                digest.update(buffer[:count])
                left -= count
        return digest.hexdigest()


def content_key(
    model: onnx.ModelProto,
    folder: Path,
    hasher: ContentHasher,
    options: Mapping[str, object],
) -> str:
    """Key of the engine that would be built of `model`.

    Args:
        model: checked by `fastwan.onnx_guard.checked_model`; left unchanged.
        folder: where its external data lies.
        options: everything else the engine depends on; JSON-able.
    """
    stripped = onnx.ModelProto()
    stripped.CopyFrom(model)
    strip_remarks(stripped)
    for tensor in all_tensors(stripped):
        if tensor.data_location == TensorProto.EXTERNAL:
            content = hasher.digest(external_range(tensor, folder, tensor.name))
            del tensor.external_data[:]
            tensor.external_data.add(key="sha256", value=content)
    digest = hashlib.sha256(stripped.SerializeToString(deterministic=True))
    digest.update(json.dumps([SCHEMA, options], sort_keys=True).encode())
    return digest.hexdigest()


def strip_remarks(model: onnx.ModelProto) -> None:
    """Remove what no engine depends on: doc strings, metadata, producer."""
    for name in ("doc_string", "producer_name", "producer_version", "domain", "model_version"):
        model.ClearField(name)
    del model.metadata_props[:]
    carriers: list[Any] = [model.graph, *model.graph.input, *model.graph.output]
    carriers += [*model.graph.value_info, *model.functions, *all_nodes(model), *all_tensors(model)]
    for carrier in carriers:
        carrier.ClearField("doc_string")
        if hasattr(carrier, "metadata_props"):
            del carrier.metadata_props[:]
    for node in all_nodes(model):
        for attribute in node.attribute:
            attribute.ClearField("doc_string")


class EngineCache:
    """Finished engines by key.

    Args:
        folder: where entries lie; by default `fastwan.files.default_cache_dir`.
        max_bytes: size above which the entries that were used longest ago are removed; by default
            ``$FASTWAN_CACHE_MAX_BYTES`` or 20 GiB.
    """

    def __init__(self, folder: Path | None = None, max_bytes: int | None = None) -> None:
        self.folder = folder or default_cache_dir()
        limit = os.environ.get(SIZE_VARIABLE, "")
        default = int(limit) if limit.isdigit() else DEFAULT_MAX_BYTES
        self._max_bytes = default if max_bytes is None else max_bytes

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Hold one key, so that two processes do not build the same engine at once."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(self.folder / f"{key}{_LOCK}"):
            yield

    def get(self, key: str) -> CachedEngine | None:
        """The entry of `key`, its plan hash-checked; None where there is none.

        An entry that is incomplete or differs from its hashes is removed.
        """
        entry = self.folder / key
        if not entry.is_dir():
            return None
        try:
            found = _read_entry(entry)
        except Exception:  # whatever is wrong with it, it is built again
            found = None
        if found is None:
            shutil.rmtree(entry, ignore_errors=True)
            return None
        os.utime(entry / _RECORD)
        return found

    def put(self, key: str, engine: BuiltEngine) -> CachedEngine:
        """Store a built engine; the entry appears whole or not at all. Call it under `lock`."""
        entry = self.folder / key
        for left_behind in self.folder.glob(f".{key}.*"):  # by a build that was killed
            shutil.rmtree(left_behind, ignore_errors=True)
        if entry.exists():
            shutil.rmtree(entry)
        with atomic_dir(entry) as temporary:
            with (temporary / _PLAN).open("wb") as stream:
                stream.write(engine.plan)
            payload = {
                "plan_sha256": hashlib.sha256(engine.plan).hexdigest(),
                "plan_bytes": engine.plan.nbytes,
                "layers": [asdict(layer) for layer in engine.layers],
                "scratch_bytes": engine.scratch_bytes,
                "inputs": [spec.model_dump() for spec in engine.inputs],
                "outputs": [spec.model_dump() for spec in engine.outputs],
            }
            record = {"sha256": _payload_digest(payload), "payload": payload}
            (temporary / _RECORD).write_text(json.dumps(record), encoding="utf-8")
        self._prune(keep=key)
        return _from_payload(entry, json.loads(json.dumps(payload)))

    def _prune(self, keep: str) -> None:
        """Remove the entries used longest ago until the rest fits."""
        entries = []
        for record in self.folder.glob(f"*/{_RECORD}"):
            try:
                size = sum(file.stat().st_size for file in record.parent.iterdir())
                entries.append((record.stat().st_mtime_ns, size, record.parent))
            except OSError:
                continue  # another process removed it meanwhile
        total = sum(size for _, size, _ in entries)
        for _, size, entry in sorted(entries):
            if total <= self._max_bytes:
                return
            if entry.name != keep:
                shutil.rmtree(entry, ignore_errors=True)
                total -= size


def _payload_digest(payload: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()


def _read_entry(entry: Path) -> CachedEngine | None:
    record = json.loads((entry / _RECORD).read_text(encoding="utf-8"))
    payload = record["payload"]
    if record["sha256"] != _payload_digest(payload):
        return None
    plan = entry / _PLAN
    if plan.stat().st_size != payload["plan_bytes"] or sha256_file(plan) != payload["plan_sha256"]:
        return None
    return _from_payload(entry, payload)


def _from_payload(entry: Path, payload: dict[str, Any]) -> CachedEngine:
    def specs(raw: Iterable[dict[str, Any]]) -> tuple[TensorSpec, ...]:
        return tuple(map(TensorSpec.model_validate, raw))

    return CachedEngine(
        plan=entry / _PLAN,
        sha256=payload["plan_sha256"],
        bytes=payload["plan_bytes"],
        layers=tuple(map(layer_from_json, payload["layers"])),
        scratch_bytes=payload["scratch_bytes"],
        inputs=specs(payload["inputs"]),
        outputs=specs(payload["outputs"]),
    )
