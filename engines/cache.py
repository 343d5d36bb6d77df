"""Cache of built engines, keyed by content.

The key is what the engine is a function of: the graph without its metadata, the bytes of every
weight it refers to, options, target and versions. Where in a data file a weight lies is no part of
it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from fastwan.cache_entry import Record
from fastwan.content_cache import ContentCache
from fastwan.engines.backend import BuiltEngine
from fastwan.engines.layer_json import layer_from_json
from fastwan.engines.layers import LayerRecord
from fastwan.errors import BadInput
from fastwan.manifest import FileRecord, TensorSpec
from fastwan.onnx_guard import DataRange, all_nodes, all_tensors, external_range

SCHEMA = 1

_PLAN = "engine.plan"
_CHUNK = 4 << 20


@dataclass(frozen=True)
class CachedEngine:
    """What a `BuiltEngine` says of an engine whose plan is a file."""

    file: FileRecord
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
    strip_metadata(stripped)
    for tensor in all_tensors(stripped):
        if tensor.data_location == TensorProto.EXTERNAL:
            content = hasher.digest(external_range(tensor, folder, tensor.name))
            del tensor.external_data[:]
            tensor.external_data.add(key="sha256", value=content)
    digest = hashlib.sha256(stripped.SerializeToString(deterministic=True))
    digest.update(json.dumps([SCHEMA, options], sort_keys=True).encode())
    return digest.hexdigest()


def strip_metadata(model: onnx.ModelProto) -> None:
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
        root: see `ContentCache`.
        max_bytes: see `ContentCache`.
    """

    def __init__(self, root: Path | None = None, max_bytes: int | None = None) -> None:
        self._cache = ContentCache("engines", root, max_bytes)

    def lock(self, key: str) -> AbstractContextManager[None]:
        """Hold one key, so that two processes do not build the same engine at once."""
        return self._cache.lock(key)

    def copy(self, key: str, plan: Path) -> CachedEngine | None:
        """The engine of `key`, its plan copied to `plan`; None where there is none that is whole.

        Raises:
            OSError: `plan` cannot be written.
        """
        record = self._cache.copy(key, lambda _: plan)
        if record is None:
            return None
        try:
            return _from_record(record)
        except (BadInput, KeyError, TypeError, ValueError, AttributeError):
            # Whole, but not what this version stores: as good as none.
            self._cache.forget(key)
            plan.unlink(missing_ok=True)
            return None

    def put(self, key: str, engine: BuiltEngine) -> FileRecord:
        """Store a built engine, and return hash and size of its plan."""
        note = {
            "layers": [asdict(layer) for layer in engine.layers],
            "scratch_bytes": engine.scratch_bytes,
            "inputs": [spec.model_dump() for spec in engine.inputs],
            "outputs": [spec.model_dump() for spec in engine.outputs],
        }
        record = self._cache.put(key, {_PLAN: engine.plan}, note)
        return plan_record(engine.plan) if record is None else _plan_of(record)


def plan_record(plan: memoryview) -> FileRecord:
    """Hash and size of a plan."""
    return FileRecord(sha256=hashlib.sha256(plan).hexdigest(), bytes=plan.nbytes)


def _plan_of(record: Record) -> FileRecord:
    return FileRecord(**record.files[_PLAN].model_dump())


def _from_record(record: Record) -> CachedEngine:
    def specs(raw: Iterable[dict[str, Any]]) -> tuple[TensorSpec, ...]:
        return tuple(map(TensorSpec.model_validate, raw))

    note = record.note
    return CachedEngine(
        file=_plan_of(record),
        layers=tuple(map(layer_from_json, note["layers"])),
        scratch_bytes=int(note["scratch_bytes"]),
        inputs=specs(note["inputs"]),
        outputs=specs(note["outputs"]),
    )
