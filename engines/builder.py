"""Build the engines of a bundle, each taken from the cache or made and held to its gates."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from fastwan import __version__
from fastwan.config import Component, SamplerSpec, Target
from fastwan.engines.backend import Backend, BuildOptions, BuiltEngine
from fastwan.engines.cache import CachedEngine, ContentHasher, EngineCache, content_key, plan_record
from fastwan.engines.coverage import check_attention, check_coverage, check_onnx_linears
from fastwan.engines.layers import LayerRecord
from fastwan.engines.source import EngineSource
from fastwan.files import sha256_file
from fastwan.manifest import Engine, FileRecord
from fastwan.onnx_guard import checked_model, external_bytes
from fastwan.parallel import in_order
from fastwan.progress import Progress, stage

_SUFFIX = ".engine"

CONCURRENT_WEIGHTS = 256 << 20
"""Bytes of weights in an engine up to which others are built at the same time: a build holds its
weights several times."""


@dataclass(frozen=True)
class BuildRequest:
    """What an engine bundle is built for.

    Attributes:
        attention: name of what the engines are made with.
        fusion: name of what was lifted out of the engines.
        components: parts of the model that the bundle holds.
        plugin_library: copied into the bundle; given to a backend that takes plugins.
        use_cache: take finished engines from the cache and leave new ones there.
        move_onnx: the ONNX bundle is temporary; move it instead of copying it.
        started: ``time.monotonic()`` when the command began; by default when the build begins.
        stages: seconds that stages before this one took, for the manifest.
    """

    target: Target
    backend: Backend
    attention: str
    samplers: tuple[SamplerSpec, ...]
    components: tuple[Component, ...]
    fusion: str = "none"
    plugin_library: Path | None = None
    use_cache: bool = True
    move_onnx: bool = False
    started: float | None = None
    stages: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class _Built:
    """What the manifest says of one engine."""

    engine: Engine
    layers: tuple[LayerRecord, ...]
    file: FileRecord
    cached: bool


class BundleBuilder:
    """Builds sources into a folder and collects what the manifest says of them.

    Attributes:
        engines: records by engine, in the order of the sources.
        layers: kernels by engine.
        files: records by path in the folder.
        stages: seconds by component.
        cached: engines that were in the cache.
    """

    def __init__(
        self,
        request: BuildRequest,
        folder: Path,
        progress: Progress,
        cache: EngineCache | None,
        scratch: Path | None = None,
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
        self._options = BuildOptions(request.target, plugin, scratch)
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
        models = {
            source.name: checked_model(source.model, source.base_dir, source.name)
            for source in sources
        }
        largest = max(external_bytes(models[source.name], source.base_dir) for source in sources)
        backend = self._request.backend
        jobs = backend.jobs() if largest <= CONCURRENT_WEIGHTS else 1

        def build_one(source: EngineSource) -> _Built:
            built = self._build_one(source, models[source.name])
            self._progress.advance(1, source.name)
            return built

        with stage(self._progress, f"build {component}", len(sources), "engines"):
            for source, built in in_order(build_one, sources, jobs, stop=backend.close):
                self.engines[source.name], self.layers[source.name] = built.engine, built.layers
                self.files[built.engine.file] = built.file
                if built.cached:
                    self.cached.append(source.name)
        self.stages[f"build {component}"] = time.monotonic() - begin

    def add_file(self, name: str) -> None:
        """Record a file of the bundle."""
        path = self._folder / name
        self.files[name] = FileRecord(sha256=sha256_file(path), bytes=path.stat().st_size)

    def _build_one(self, source: EngineSource, model: onnx.ModelProto) -> _Built:
        from fastwan.export.attentions import find_attention

        elements = check_onnx_linears(model, source.linears)
        file = f"{source.component}/{source.name}{_SUFFIX}"
        path = self._folder / file
        found: BuiltEngine | CachedEngine
        if self._cache is None:
            found = self._compile(source, elements, path)
            record, cached = plan_record(found.plan), False
        else:
            key = content_key(model, source.base_dir, self._hasher, self._key(source))
            with self._cache.lock(key):
                entry = self._cache.copy(key, path)
                cached = entry is not None
                if entry is None:
                    found = self._compile(source, elements, path)
                    record = self._cache.put(key, found)
                else:
                    check_coverage(entry.layers, source.linears, elements).require(source.name)
                    found, record = entry, entry.file
        check_attention(find_attention(self._request.attention), model, found.layers)
        engine = Engine(
            file=file,
            component=source.component,
            inputs=found.inputs,
            outputs=found.outputs,
            scratch_bytes=found.scratch_bytes,
            linears=source.linears,
            runs=source.cadence,
            profiles=dict(source.profiles or {}),
        )
        return _Built(engine, found.layers, record, cached)

    def _compile(self, source: EngineSource, elements: dict[str, int], path: Path) -> BuiltEngine:
        """Build an engine, hold it to the gate and write its plan to `path`."""
        built = self._request.backend.build(source, self._options, self._progress)
        check_coverage(built.layers, source.linears, elements).require(source.name)
        with path.open("wb") as stream:
            stream.write(built.plan)
        return built

    def _key(self, source: EngineSource) -> dict[str, object]:
        return {
            **self._fixed_key,
            "profiles": dict(source.profiles or {}),
            "io_formats": dict(source.io_formats or {}),
        }
