"""Build the engines of a bundle, each taken from the cache or made and held to its gates."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx

from fastwan import __version__
from fastwan.config import Component, SamplerSpec, Target
from fastwan.engines.backend import Backend, BuildOptions, BuiltEngine
from fastwan.engines.cache import CachedEngine, ContentHasher, EngineCache, content_key, plan_record
from fastwan.engines.coverage import check_attention, check_coverage, check_onnx_linears
from fastwan.engines.layers import LayerRecord
from fastwan.engines.source import EngineSource
from fastwan.errors import BadInput
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
class KnownPlan:
    """A plan of another bundle that holds no weights.

    Attributes:
        path: of its file, whose hash was checked.
        engine: one that runs it, of which `layers` are.
        layers: its kernels, by the nodes of that engine's graph.
    """

    path: Path
    file: FileRecord
    engine: str
    layers: tuple[LayerRecord, ...]
    scratch_bytes: int

    def of(self, source: EngineSource) -> CachedEngine:
        """What it is for a source of the same structure.

        Raises:
            BadInput: the source is another engine's.
        """
        shared = source.shared
        if shared is None or source.name != self.engine:
            raise BadInput(
                f"{self.path.name} is the plan of {self.engine}, not of {source.name}",
                where=str(self.path.parent),
                fix="build the checkpoint with build-engine",
            )
        own = {node: name for name, node in shared.nodes.items()}
        layers = tuple(
            replace(layer, nodes=tuple(own[node] for node in layer.nodes)) for layer in self.layers
        )
        return CachedEngine(self.file, layers, self.scratch_bytes, (), ())


@dataclass(frozen=True)
class BuildRequest:
    """What an engine bundle is built for.

    Attributes:
        attention: name of what the engines are made with.
        fusion: name of what was lifted out of the engines.
        weights: name of where those of a step's linears are.
        components: parts of the model that the bundle holds.
        plugin_library: copied into the bundle; given to a backend that takes plugins.
        use_cache: take finished engines from the cache and leave new ones there.
        move_onnx: the ONNX bundle is temporary; move it instead of copying it.
        started: ``time.monotonic()`` when the command began; by default when the build begins.
        stages: seconds that stages before this one took, for the manifest.
        plans: by name, of another bundle, in place of those that would be built for no weights.
    """

    target: Target
    backend: Backend
    attention: str
    samplers: tuple[SamplerSpec, ...]
    components: tuple[Component, ...]
    fusion: str = "none"
    weights: str = "inline"
    plugin_library: Path | None = None
    use_cache: bool = True
    move_onnx: bool = False
    started: float | None = None
    stages: tuple[tuple[str, float], ...] = ()
    plans: Mapping[str, KnownPlan] = field(default_factory=dict)


@dataclass(frozen=True)
class _Plan:
    """What is built, once for all engines that share it.

    Attributes:
        source: its name is that of the file.
        owner: the first of the engines, whose gate it is held to before it is kept.
    """

    source: EngineSource
    owner: EngineSource


@dataclass(frozen=True)
class _Built:
    """A plan that was built or found."""

    found: BuiltEngine | CachedEngine
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
        elements = {}
        largest = 0
        plans = _plans(sources)
        models = {}
        for source in sources:
            model = checked_model(source.model, source.base_dir, source.name)
            elements[source.name] = check_onnx_linears(model, source.linears)
            if source.shared is None:
                models[source.name] = model
                largest = max(largest, external_bytes(model, source.base_dir))
        for name, plan in plans.items():
            if name not in models:
                models[name] = checked_model(plan.source.model, plan.source.base_dir, name)
        backend = self._request.backend
        jobs = backend.jobs() if largest <= CONCURRENT_WEIGHTS else 1

        def build_one(plan: _Plan) -> _Built:
            made = self._build_plan(plan, models[plan.source.name], elements[plan.owner.name])
            self._progress.advance(1, plan.source.name)
            return made

        built = {}
        with stage(self._progress, f"build {component}", len(plans), "engines"):
            for plan, made in in_order(build_one, list(plans.values()), jobs, stop=backend.close):
                built[plan.source.name] = made
                self.files[_file(plan.source)] = made.file
                if made.cached:
                    self.cached.append(plan.source.name)
        for source in sources:
            self._add_engine(source, built[_plan_name(source)], elements[source.name])
        self.stages[f"build {component}"] = time.monotonic() - begin

    def _add_engine(self, source: EngineSource, built: _Built, elements: dict[str, int]) -> None:
        found, shared = built.found, source.shared
        layers = _layers(source, found.layers)
        check_coverage(layers, source.linears, elements).require(source.name)
        self.layers[source.name] = layers
        self.engines[source.name] = Engine(
            file=f"{source.component}/{_plan_name(source)}{_SUFFIX}",
            component=source.component,
            inputs=found.inputs if shared is None else shared.inputs,
            outputs=found.outputs if shared is None else shared.outputs,
            constants=() if shared is None else shared.constants,
            bindings={} if shared is None else dict(shared.bindings),
            scratch_bytes=found.scratch_bytes,
            linears=source.linears,
            runs=source.cadence,
            profiles=dict(source.profiles or {}),
        )

    def add_file(self, name: str) -> None:
        """Record a file of the bundle."""
        path = self._folder / name
        self.files[name] = FileRecord(sha256=sha256_file(path), bytes=path.stat().st_size)

    def _build_plan(self, plan: _Plan, model: onnx.ModelProto, elements: dict[str, int]) -> _Built:
        from fastwan.export.attentions import find_attention

        made = self._built(plan, model, elements)
        check_attention(find_attention(self._request.attention), model, made.found.layers)
        return made

    def _built(self, plan: _Plan, model: onnx.ModelProto, elements: dict[str, int]) -> _Built:
        source = plan.source
        path = self._folder / _file(source)
        known = self._request.plans.get(source.name)
        if known is not None:
            taken = known.of(plan.owner)
            self._check(plan.owner, taken, elements)
            shutil.copyfile(known.path, path)
            return _Built(taken, taken.file, cached=True)
        if self._cache is None:
            found = self._compile(plan, elements, path)
            return _built(found, plan_record(found.plan))
        key = content_key(model, source.base_dir, self._hasher, self._key(source))
        with self._cache.lock(key):
            entry = self._cache.copy(key, path)
            if entry is None:
                found = self._compile(plan, elements, path)
                return _built(found, self._cache.put(key, found))
            self._check(plan.owner, entry, elements)
            return _Built(entry, entry.file, cached=True)

    def _compile(self, plan: _Plan, elements: dict[str, int], path: Path) -> BuiltEngine:
        """Build an engine, hold it to the gate and write its plan to `path`."""
        built = self._request.backend.build(plan.source, self._options, self._progress)
        self._check(plan.owner, built, elements)
        with path.open("wb") as stream:
            stream.write(built.plan)
        return built

    def _check(
        self, source: EngineSource, found: BuiltEngine | CachedEngine, elements: dict[str, int]
    ) -> None:
        layers = _layers(source, found.layers)
        check_coverage(layers, source.linears, elements).require(source.name)

    def _key(self, source: EngineSource) -> dict[str, object]:
        return {
            **self._fixed_key,
            "profiles": dict(source.profiles or {}),
            "io_formats": dict(source.io_formats or {}),
        }


def _built(found: BuiltEngine, file: FileRecord) -> _Built:
    """A plan that was built and written.

    Its bytes are let go: kept for every engine, the plans of a model with weights inline are the
    peak of memory, 1.3 GB of FP8.
    """
    return _Built(replace(found, plan=memoryview(b"")), file, cached=False)


def _plan_name(source: EngineSource) -> str:
    return source.name if source.shared is None else source.shared.name


def _file(plan: EngineSource) -> str:
    return f"{plan.component}/{plan.name}{_SUFFIX}"


def _plans(sources: Sequence[EngineSource]) -> dict[str, _Plan]:
    """What is to be built for some engines, by name.

    Raises:
        BadInput: graphs that differ have one name.
    """
    plans: dict[str, _Plan] = {}
    for source in sources:
        shared = source.shared
        made = source if shared is None else replace(source, name=shared.name, model=shared.model)
        known = plans.setdefault(made.name, _Plan(made, source))
        if known.source.model != made.model:
            raise BadInput(f"two plans have the name {made.name!r}", where=source.name)
    return plans


def _layers(source: EngineSource, layers: Sequence[LayerRecord]) -> tuple[LayerRecord, ...]:
    """Records of a plan by the nodes of an engine's own graph."""
    if source.shared is None:
        return tuple(layers)
    nodes = source.shared.nodes
    return tuple(
        replace(layer, nodes=tuple(nodes[node] for node in layer.nodes)) for layer in layers
    )
