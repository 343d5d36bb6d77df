"""Build an engine bundle from an ONNX bundle and the graphs its engines are made of."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastwan import __version__
from fastwan.bundle import (
    LAYERS,
    MANIFEST,
    ONNX_MANIFEST,
    BuildRecord,
    Engine,
    FileRecord,
    Manifest,
    OnnxManifest,
    parse_manifest,
)
from fastwan.config import AttentionName, SamplerName, Target
from fastwan.engines.backend import Backend, BuildOptions, BuiltEngine
from fastwan.engines.cache import CachedEngine, ContentHasher, EngineCache, content_key
from fastwan.engines.coverage import check_coverage, check_onnx_linears
from fastwan.engines.layers import LayerRecord
from fastwan.engines.onnx_guard import checked_model
from fastwan.engines.plan import EngineSource
from fastwan.engines.regions import region_records
from fastwan.errors import BadInput
from fastwan.export.passes.cut_at_regions import Region as RegionGraph
from fastwan.files import atomic_dir, confined_file, sha256_file
from fastwan.progress import Progress, Quiet, stage

ONNX_FOLDER = "onnx"
PLUGIN_FOLDER = "plugins"
_SUFFIX = ".engine"


@dataclass(frozen=True)
class BuildRequest:
    """What an engine bundle is built for.

    Attributes:
        components: parts of the model that the bundle holds.
        plugin_library: copied into the bundle; given to a backend that takes plugins.
        use_cache: take finished engines from the cache and leave new ones there.
        move_onnx: the ONNX bundle is temporary; move it instead of copying it.
        started: ``time.monotonic()`` when the command began; by default when the build begins.
        stages: seconds that stages before this one took, for the manifest.
    """

    target: Target
    backend: Backend
    attention: AttentionName
    sampler: SamplerName
    components: tuple[str, ...]
    plugin_library: Path | None = None
    use_cache: bool = True
    move_onnx: bool = False
    started: float | None = None
    stages: tuple[tuple[str, float], ...] = ()


def build_bundle(
    onnx_bundle: Path,
    output: Path,
    sources: Sequence[EngineSource],
    request: BuildRequest,
    *,
    regions: Sequence[RegionGraph] = (),
    cache: EngineCache | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Build every source and write the engine bundle.

    Nothing is at `output`, and what was there is untouched, unless all of it succeeds. Engines
    that were finished before a build fails or is killed are in the cache for the next one.

    Args:
        onnx_bundle: folder with ``export.json``; kept in the bundle as the CPU reference.
        output: folder of the bundle; replaced if it holds a bundle.
        sources: one for each engine, in the order in which they run.
        regions: what the runtime launches between the ``dit`` engines.
        cache: by default the user's, see `EngineCache`.

    Raises:
        BadInput: the ONNX bundle, a graph, an option or `output` is not what it has to be.
        EnvironmentLacks: the backend cannot build for the target here.
        VerificationFailed: an engine or a graph lost FP4, or says nothing about its layers.
        KeyboardInterrupt: cancelled.
    """
    progress = progress or Quiet()
    started = time.monotonic() if request.started is None else request.started
    _check_names(sources)
    request.backend.check(request.target)
    exported = parse_manifest(onnx_bundle / ONNX_MANIFEST, OnnxManifest)
    _check_files(onnx_bundle, exported)
    with atomic_dir(output, replace_marker=MANIFEST) as folder:
        builder = _Builder(request, folder, progress, cache)
        try:
            for component in dict.fromkeys(source.component for source in sources):
                builder.build([source for source in sources if source.component == component])
        finally:
            request.backend.close()
        begin = time.monotonic()
        _write_layers(folder / LAYERS, builder.layers)
        builder.add_file(LAYERS)
        if request.plugin_library is not None:
            (folder / PLUGIN_FOLDER).mkdir()
            name = f"{PLUGIN_FOLDER}/{request.plugin_library.name}"
            shutil.copyfile(request.plugin_library, folder / name)
            builder.add_file(name)
        names = _onnx_files(exported)
        size = sum((onnx_bundle / name).stat().st_size for name in names)
        with stage(progress, "hash ONNX files", size, "bytes"):
            # Hashed where they are: a move cannot be taken back, so it comes last.
            for name in names:
                path = onnx_bundle / name
                record = FileRecord(sha256=sha256_file(path), bytes=path.stat().st_size)
                builder.files[f"{ONNX_FOLDER}/{name}"] = record
                progress.advance(record.bytes, name)
        stages = {**dict(request.stages), **builder.stages, "files": time.monotonic() - begin}
        manifest = Manifest(
            tool_version=__version__,
            versions={request.backend.name: request.backend.version()},
            target=request.target.name,
            backend=request.backend.name,
            attention=request.attention,
            sampler=request.sampler,
            components=request.components,
            onnx=exported,
            engines=builder.engines,
            regions=region_records(regions, builder.engines),
            files=dict(sorted(builder.files.items())),
            build=BuildRecord(
                seconds=time.monotonic() - started,
                peak_rss_bytes=peak_rss_bytes(),
                stages=stages,
                cached=tuple(builder.cached),
            ),
        )
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
        _bring(onnx_bundle, folder / ONNX_FOLDER, names, move=request.move_onnx)
    return manifest


class _Builder:
    """Builds sources into a folder and collects what the manifest says of them."""

    def __init__(
        self, request: BuildRequest, folder: Path, progress: Progress, cache: EngineCache | None
    ) -> None:
        self.engines: dict[str, Engine] = {}
        self.layers: dict[str, tuple[LayerRecord, ...]] = {}
        self.files: dict[str, FileRecord] = {}
        self.stages: dict[str, float] = {}
        self.cached: list[str] = []
        self._request = request
        self._folder = folder
        self._progress = progress
        self._hasher = ContentHasher()
        self._cache = (cache or EngineCache()) if request.use_cache else None
        plugin = request.plugin_library if request.backend.takes_plugins else None
        self._options = BuildOptions(request.target, plugin)
        self._fixed_key: dict[str, object] = {
            "tool": __version__,
            "backend": request.backend.name,
            "version": request.backend.version(),
            "compute_capability": request.target.compute_capability,
            "plugin": None if plugin is None else sha256_file(plugin),
        }

    def build(self, sources: Sequence[EngineSource]) -> None:
        """Build the engines of one component."""
        component = sources[0].component
        (self._folder / component).mkdir()
        begin = time.monotonic()
        with stage(self._progress, f"build {component}", len(sources), "engines"):
            for source in sources:
                self._build_one(source)
                self._progress.advance(1, source.name)
        self.stages[f"build {component}"] = time.monotonic() - begin

    def add_file(self, name: str) -> None:
        """Record a file of the bundle."""
        path = self._folder / name
        self.files[name] = FileRecord(sha256=sha256_file(path), bytes=path.stat().st_size)

    def _build_one(self, source: EngineSource) -> None:
        model = checked_model(source.serialized(), source.base_dir, source.name)
        elements = check_onnx_linears(model, source.linears)
        file = f"{source.component}/{source.name}{_SUFFIX}"
        if self._cache is None:
            built = self._compile(source, elements)
            with (self._folder / file).open("wb") as stream:
                stream.write(built.plan)
            self.add_file(file)
            found: BuiltEngine | CachedEngine = built
        else:
            key = content_key(model, source.base_dir, self._hasher, self._key(source))
            with self._cache.lock(key):
                entry = self._cache.get(key)
                if entry is None:
                    entry = self._cache.put(key, self._compile(source, elements))
                else:
                    check_coverage(entry.layers, source.linears, elements).require(source.name)
                    self.cached.append(source.name)
                shutil.copyfile(entry.plan, self._folder / file)
            self.files[file] = FileRecord(sha256=entry.sha256, bytes=entry.bytes)
            found = entry
        self.layers[source.name] = found.layers
        self.engines[source.name] = Engine(
            file=file,
            component=source.component,
            inputs=found.inputs,
            outputs=found.outputs,
            scratch_bytes=found.scratch_bytes,
            linears=source.linears,
            runs=source.cadence,
            profiles=dict(source.profiles or {}),
        )

    def _compile(self, source: EngineSource, elements: dict[str, int]) -> BuiltEngine:
        built = self._request.backend.build(source, self._options, self._progress)
        check_coverage(built.layers, source.linears, elements).require(source.name)
        return built

    def _key(self, source: EngineSource) -> dict[str, object]:
        return {
            **self._fixed_key,
            "profiles": dict(source.profiles or {}),
            "io_formats": dict(source.io_formats or {}),
        }


def peak_rss_bytes() -> int:
    """Largest resident memory of a process so far, by the operating system's account.

    Of this one and those it has waited for, each for itself; 0 where the system does not tell.
    """
    try:
        import resource
    except ImportError:
        return 0
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    peak = max(resource.getrusage(who).ru_maxrss for who in whose)
    return peak if sys.platform == "darwin" else peak * 1024


def _check_names(sources: Sequence[EngineSource]) -> None:
    if not sources:
        raise BadInput("nothing to build", fix="name a component with --components")
    for name, count in Counter(source.name for source in sources).items():
        if count > 1 or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            raise BadInput(f"engine name {name!r} is not a unique plain name")


def _onnx_files(exported: OnnxManifest) -> list[str]:
    names = {ONNX_MANIFEST, *exported.extra_files}
    for graph in exported.graphs.values():
        names.update((graph.file, *graph.data))
        if graph.cpu_file is not None:
            names.add(graph.cpu_file)
    return sorted(names)


def _check_files(onnx_bundle: Path, exported: OnnxManifest) -> None:
    for name in _onnx_files(exported):
        confined_file(onnx_bundle, name)


def _write_layers(path: Path, layers: Mapping[str, Sequence[LayerRecord]]) -> None:
    """Write ``layers.json``: {engine: [record]}, one record a line."""
    with path.open("w", encoding="utf-8") as stream:
        blocks = []
        for name, records in layers.items():
            lines = ",\n".join(json.dumps(record.to_json()) for record in records)
            blocks.append(f"{json.dumps(name)}: [\n{lines}\n]")
        stream.write("{\n" + ",\n".join(blocks) + "\n}\n")


def _bring(source: Path, target: Path, names: Sequence[str], *, move: bool) -> None:
    for name in names:
        destination = target / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        if move and _renamed(source / name, destination):
            continue
        shutil.copyfile(source / name, destination)


def _renamed(source: Path, destination: Path) -> bool:
    """Move within a file system; False across two."""
    try:
        os.rename(source, destination)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return False
    return True
