"""Bundles of one model at several shapes as one, in which what is equal lies once.

A file of a further shape is shared where another shape has the same bytes under the same name. Of
a data file some tensors follow the shape. There each tensor is shared for itself: the graph of a
further shape reads the data file of the first one, and a small one of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import onnx
from onnx import TensorProto

from fastwan.bundle import Bundle
from fastwan.engines.build import ONNX_FOLDER, write_layers
from fastwan.engines.cache import ContentHasher
from fastwan.engines.layer_json import bundle_layers
from fastwan.export.onnx_io import ALIGNMENT
from fastwan.files import sha256_file
from fastwan.manifest import (
    LAYERS,
    ONNX_MANIFEST,
    Engine,
    Fallback,
    FileRecord,
    Graph,
    ShapeParts,
)
from fastwan.onnx_guard import DataRange, all_tensors, checked_model, external_range
from fastwan.shapes import shape_text

_UNSHARED = (LAYERS, f"{ONNX_FOLDER}/{ONNX_MANIFEST}")
"""Files of a bundle of one shape that its manifest says the content of, or that are written anew.
"""


class Merger:
    """Moves bundles of one model into a folder.

    Args:
        first: all it has goes in under the names that it has.
        folder: existing and empty.

    Attributes:
        files: of the folder, by path.
        shapes: what the manifest says of further shapes.
    """

    def __init__(self, first: Bundle, folder: Path) -> None:
        self.files: dict[str, FileRecord] = {}
        self.shapes: list[ShapeParts] = []
        self._manifest = first.manifest
        self._layers = bundle_layers(first)
        self._folder = folder
        self._hasher = ContentHasher()
        self._known: dict[tuple[str, FileRecord], str] = {}
        for name, record in first.manifest.files.items():
            self._move(first, name, name, record)

    def add(self, part: Bundle) -> None:
        """Bring in the bundle of another shape.

        Args:
            part: of the same weights; its text encoder, which no shape changes, is the first's and
                may be missing.

        Raises:
            BadInput, VerificationFailed: a file of it is not what its manifest says.
        """
        manifest = part.manifest
        label = shape_text(manifest.onnx.model.shape)
        layers, graphs = bundle_layers(part), self._graphs(part, label)
        names = {
            name: self._share(part, name, record, label)
            for name, record in manifest.files.items()
            if not name.startswith(f"{ONNX_FOLDER}/") and name not in _UNSHARED
        }
        engines = {name: _renamed(each, names) for name, each in manifest.engines.items()}
        for name, engine in self._manifest.engines.items():
            if engine.component == "text_encoder" and name not in engines:
                engines[name], layers[name] = engine, self._layers[name]
        listed = PurePosixPath(LAYERS)
        own = f"{listed.stem}.{label}{listed.suffix}"
        write_layers(self._folder / own, layers)
        self._add(own)
        first = self._manifest.onnx
        model = first.model.model_copy(update={"shape": manifest.onnx.model.shape})
        update = {
            "model": model,
            "graphs": {**first.graphs, **graphs},
            "tensor_digests": {**first.tensor_digests, **manifest.onnx.tensor_digests},
        }
        self.shapes.append(
            ShapeParts(
                onnx=first.model_copy(update=update),
                layers=own,
                engines=engines,
                regions=manifest.regions,
                fallbacks={
                    name: _renamed_fallback(each, names)
                    for name, each in manifest.fallbacks.items()
                },
            )
        )

    def _share(self, part: Bundle, name: str, record: FileRecord, label: str) -> str:
        """Path of a file in the folder: one that is equal, or where it was moved to."""
        if (name, record) not in self._known:
            component, _, rest = name.partition("/")
            self._move(part, name, f"{component}/{label}/{rest}", record)
        return self._known[name, record]

    def _move(self, part: Bundle, name: str, to: str, record: FileRecord) -> None:
        target = self._folder / to
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(part.folder / name, target)
        self.files[to] = record
        self._known[name, record] = to

    def _add(self, name: str) -> None:
        path = self._folder / name
        self.files[name] = FileRecord(sha256=sha256_file(path), bytes=path.stat().st_size)

    def _graphs(self, part: Bundle, label: str) -> dict[str, Graph]:
        """Bring in the graphs of a shape, and what of their data files is not in the folder."""
        records = part.manifest.onnx.graphs
        data = {name for graph in records.values() for name in graph.data}
        apart = {name for name in data if (_path(name), _record(part, name)) not in self._known}
        placed: dict[str, tuple[str, frozenset[str]]] = {}
        tensors, own = self._tensors(apart), _OwnData(self._folder / ONNX_FOLDER, label)
        for graph in records.values():
            for file in filter(None, (graph.file, graph.cpu_file)):
                if file not in placed:
                    placed[file] = self._graph(part, file, label, tensors, own)
        for name in own.names:
            self._add(_path(name))
        return {
            name: graph.model_copy(
                update={
                    "file": placed[graph.file][0],
                    "cpu_file": graph.cpu_file and placed[graph.cpu_file][0],
                    "data": tuple(
                        sorted(placed[graph.file][1] | placed[graph.cpu_file or graph.file][1])
                    ),
                }
            )
            for name, graph in records.items()
        }

    def _tensors(self, apart: set[str]) -> dict[str, tuple[str, int]]:
        """Where the first shape's tensors of some data files lie, by the hash of their bytes."""
        found = {}
        graphs = self._manifest.onnx.graphs.values()
        for file in {graph.file for graph in graphs if apart & set(graph.data)}:
            folder = self._folder / ONNX_FOLDER
            model = checked_model((folder / file).read_bytes(), folder, file)
            for tensor in _external(model):
                where = external_range(tensor, folder, file)
                found[self._hasher.digest(where)] = (where.path.name, where.offset)
        return found

    def _graph(
        self,
        part: Bundle,
        file: str,
        label: str,
        tensors: dict[str, tuple[str, int]],
        own: _OwnData,
    ) -> tuple[str, frozenset[str]]:
        """Bring in an ONNX file; its new name, and the data files that it reads then."""
        folder = part.folder / ONNX_FOLDER
        model = checked_model(part.read(_path(file)), folder, file)
        name = _labelled(file, label)
        used, changed = set(), False
        for tensor in _external(model):
            where = external_range(tensor, folder, file)
            data = where.path.name
            if (_path(data), _record(part, data)) in self._known:
                used.add(data)
                continue
            place = tensors.get(self._hasher.digest(where))
            place = own.add(where) if place is None else place
            _point(tensor, *place)
            used.add(place[0])
            changed = True
        if changed:
            (self._folder / _path(name)).write_bytes(model.SerializeToString(deterministic=True))
            self._add(_path(name))
            return name, frozenset(used)
        record = _record(part, file)
        if (_path(file), record) not in self._known:
            self._move(part, _path(file), _path(name), record)
        return self._known[_path(file), record].removeprefix(f"{ONNX_FOLDER}/"), frozenset(used)


class _OwnData:
    """Data files of a further shape, with the tensors that no other shape has.

    Attributes:
        names: of the files that were written.
    """

    def __init__(self, folder: Path, label: str) -> None:
        self.names: set[str] = set()
        self._folder = folder
        self._label = label
        self._known: dict[DataRange, tuple[str, int]] = {}

    def add(self, where: DataRange) -> tuple[str, int]:
        """Append a tensor, once; the name of its file and where it begins there."""
        if where not in self._known:
            name = _labelled(where.path.name, self._label)
            with where.path.open("rb") as source:
                source.seek(where.offset)
                content = source.read(where.length)
            with (self._folder / name).open("ab") as stream:
                stream.write(b"\0" * (-stream.tell() % ALIGNMENT))
                self._known[where] = (name, stream.tell())
                stream.write(content)
            self.names.add(name)
        return self._known[where]


def _external(model: onnx.ModelProto) -> Iterator[TensorProto]:
    return (each for each in all_tensors(model) if each.data_location == TensorProto.EXTERNAL)


def _point(tensor: TensorProto, location: str, offset: int) -> None:
    """Let an external tensor be read from another place."""
    for entry in tensor.external_data:
        if entry.key == "location":
            entry.value = location
        elif entry.key == "offset":
            entry.value = str(offset)


def _path(name: str) -> str:
    return f"{ONNX_FOLDER}/{name}"


def _record(part: Bundle, name: str) -> FileRecord:
    return part.manifest.files[_path(name)]


def _labelled(name: str, label: str) -> str:
    """``dit.onnx`` as ``dit.832x480x81.onnx``; ``dit.cpu.onnx`` as ``dit.832x480x81.cpu.onnx``."""
    stem, _, rest = name.partition(".")
    return f"{stem}.{label}.{rest}"


def _renamed(engine: Engine, names: dict[str, str]) -> Engine:
    return engine.model_copy(update={"file": names[engine.file]})


def _renamed_fallback(fallback: Fallback, names: dict[str, str]) -> Fallback:
    update = {"graph": names[fallback.graph], "engine": _renamed(fallback.engine, names)}
    return fallback.model_copy(update=update)
