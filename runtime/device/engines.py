"""Engines of TensorRT and TensorRT-RTX: one class, the module differs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple

from fastwan.bundle import Bundle
from fastwan.config import TARGETS
from fastwan.content_cache import ContentCache
from fastwan.errors import BadInput, EnvironmentLacks
from fastwan.install import how_to_install
from fastwan.manifest import Engine
from fastwan.runtime.device.kernels import BUNDLED, library_path
from fastwan.runtime.device.runtime_cache import RuntimeCache, kernels_key
from fastwan.runtime.recording.machine import Binding, DeviceError, DeviceInfo
from fastwan.tables import lookup


class Library(NamedTuple):
    """What loads the engines of a backend.

    Attributes:
        module: Python module.
        extra: of this package that brings it.
        plugins: whether engines may hold nodes of the plugin library.
        compiles: whether it compiles kernels when an engine is loaded, which can be kept.
    """

    module: str
    extra: str
    plugins: bool
    compiles: bool


LIBRARIES = {
    "tensorrt-rtx": Library("tensorrt_rtx", "gpu", False, True),
    "tensorrt": Library("tensorrt", "tensorrt", True, False),
}


class TensorRTEngine:
    """One engine with its context, whose scratch belongs to the caller.

    Args:
        trt: module of the backend.
        runtime: that deserialised it.
        engine: ``ICudaEngine``.
        record: what the manifest says of it.
        cache: kernels that are compiled here, for TensorRT-RTX; None for TensorRT.

    Raises:
        BadInput: inputs or outputs are not those of the manifest.
        EnvironmentLacks: no context can be made.
    """

    def __init__(
        self,
        trt: Any,
        runtime: Any,
        engine: Any,
        name: str,
        record: Engine,
        log: Any,
        cache: RuntimeCache | None = None,
    ) -> None:
        names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
        wanted = set(record.plan_tensors)
        if names != wanted:
            raise BadInput(
                f"{name} has other tensors than the manifest: {', '.join(sorted(names ^ wanted))}",
                where=record.file,
                fix="build the bundle again",
            )
        self._context = _context(trt, engine, cache)
        if self._context is None:
            raise EnvironmentLacks(f"no context for {name}: {log.last}", where=record.file)
        self._owners = (runtime, log, cache)  # the engine uses what they own
        self._engine = engine
        self._name = name
        self._log = log
        self._dynamic = {
            record.bindings.get(spec.name, spec.name)
            for spec in record.inputs
            if any(isinstance(size, str) for size in spec.shape)
        }
        self._bound: dict[str, Binding] = {}
        self._scratch = (0, 0)
        self._profile = 0  # a new context has the first one

    @property
    def scratch_bytes(self) -> int:
        """What the context needs on this device; may differ from what the builder foresaw."""
        return int(self._engine.device_memory_size_v2)

    def enqueue(
        self,
        bindings: Mapping[str, Binding],
        scratch: int,
        scratch_bytes: int,
        stream: int,
        profile: int = 0,
    ) -> None:
        if self._profile != profile:
            switched = self._context.set_optimization_profile_async(profile, stream)
            self._require(switched, f"optimization profile {profile}")
            self._profile = profile
            # The context now knows neither the shapes nor, for another profile, the scratch.
            self._bound.clear()
            self._scratch = (0, 0)
        if self._scratch != (scratch, scratch_bytes):
            self._context.set_device_memory(scratch, scratch_bytes)
            self._scratch = (scratch, scratch_bytes)
        for name, (address, shape) in bindings.items():
            known = self._bound.get(name)
            if known == (address, shape):
                continue
            if name in self._dynamic and (known is None or known[1] != shape):
                self._require(self._context.set_input_shape(name, shape), f"shape of {name}")
            if known is None or known[0] != address:
                self._require(self._context.set_tensor_address(name, address), name)
            self._bound[name] = (address, shape)
        self._require(self._context.execute_async_v3(stream), "enqueue")

    def _require(self, done: bool, what: str) -> None:
        if not done:
            self._bound.clear()
            raise DeviceError(f"{self._name}: {what} failed: {self._log.last}")


class BoundEngine:
    """An engine of a plan that others share, with names of its own for the plan's tensors.

    Args:
        plan: runs one of them at a time, in the order in which they are enqueued.
        bindings: by tensor, what the plan calls it.
    """

    def __init__(self, plan: TensorRTEngine, bindings: Mapping[str, str]) -> None:
        self._plan = plan
        self._bindings = bindings

    @property
    def scratch_bytes(self) -> int:
        """See `TensorRTEngine.scratch_bytes`."""
        return self._plan.scratch_bytes

    def enqueue(
        self,
        bindings: Mapping[str, Binding],
        scratch: int,
        scratch_bytes: int,
        stream: int,
        profile: int = 0,
    ) -> None:
        renamed = {self._bindings[name]: binding for name, binding in bindings.items()}
        self._plan.enqueue(renamed, scratch, scratch_bytes, stream, profile)


def _context(trt: Any, engine: Any, cache: RuntimeCache | None) -> Any:
    """A context whose scratch belongs to the caller; None where TensorRT refuses."""
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    if cache is None:
        return engine.create_execution_context(strategy)
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(strategy)
    # Only the text encoder's shapes vary. Kernels for each length would be compiled beside the
    # first videos (lazy) or before a prompt of a new length (eager); the profiles are as fine as
    # they need to be, and every one is run before the first prompt.
    config.dynamic_shapes_kernel_specialization_strategy = (
        trt.DynamicShapesKernelSpecializationStrategy.NONE
    )
    # A video is one graph already, of all engines.
    config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
    cache.attach(config)
    return engine.create_execution_context(config)


def open_engines(
    bundle: Bundle,
    device: DeviceInfo,
    cache: RuntimeCache | None = None,
    records: Mapping[str, Engine] | None = None,
) -> dict[str, TensorRTEngine | BoundEngine]:
    """Engines of a bundle, each plan deserialised once, after its hash was checked.

    Args:
        cache: for the kernels of TensorRT-RTX; see `runtime_cache`.
        records: which; by default all that a video is made with.

    Raises:
        EnvironmentLacks: a missing package or plugin, or another GPU or TensorRT than the engines
            were built for.
        VerificationFailed: a file differs from its hash.
    """
    manifest = bundle.manifest
    trt = _module(manifest.backend)
    check_version(manifest.backend, manifest.versions.get(manifest.backend, ""), trt.__version__)
    check_target(manifest.target, device)
    if lookup(LIBRARIES, manifest.backend).plugins and BUNDLED in manifest.files:
        from fastwan.plugins.registry import load_into_registry

        load_into_registry(trt, library_path(bundle))
    loader = _Loader(manifest.backend)
    fix = f"it was built for {manifest.target}; this is {device.name}"
    plans: dict[str, TensorRTEngine] = {}
    engines: dict[str, TensorRTEngine | BoundEngine] = {}
    for name, record in (manifest.engines if records is None else records).items():
        if record.file not in plans:
            plan = bundle.read(record.file)
            plans[record.file] = loader.load(name, record, plan, cache, fix)
        opened = plans[record.file]
        engines[name] = BoundEngine(opened, record.bindings) if record.bindings else opened
    return engines


def open_built(
    backend: str, name: str, record: Engine, plan: bytes, cache: RuntimeCache | None = None
) -> TensorRTEngine:
    """One engine that was built here and is of no bundle.

    Args:
        record: its inputs and outputs.
        plan: the serialised engine.

    Raises:
        EnvironmentLacks: a missing package, or an engine that does not load on this GPU.
    """
    return _Loader(backend).load(name, record, plan, cache, "")


class _Loader:
    """Loads engines of a backend, which share its runtime and its log."""

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._trt = _module(backend)
        self._log = _logger(self._trt)
        self._runtime = self._trt.Runtime(self._log)

    def load(
        self, name: str, record: Engine, plan: bytes, cache: RuntimeCache | None, fix: str
    ) -> TensorRTEngine:
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EnvironmentLacks(
                f"{self._backend} cannot load the engine {name}: {self._log.last}",
                where=record.file,
                fix=fix,
            )
        return TensorRTEngine(self._trt, self._runtime, engine, name, record, self._log, cache)


def runtime_cache(bundle: Bundle, device: DeviceInfo) -> RuntimeCache | None:
    """Where kernels that are compiled for a bundle's engines stay; None for TensorRT's.

    TensorRT 11 compiles them when it builds an engine.

    Raises:
        EnvironmentLacks: TensorRT-RTX is not installed, or the cache's size is no number.
    """
    backend = bundle.manifest.backend
    if not lookup(LIBRARIES, backend).compiles:
        return None
    key = kernels_key(bundle, str(_module(backend).__version__), device)
    return RuntimeCache(ContentCache("runtime"), key)


def check_version(backend: str, built: str, installed: str) -> None:
    """Engines load in the version that built them only.

    Raises:
        EnvironmentLacks: another one is installed.
    """
    if built and built != installed:
        raise EnvironmentLacks(
            f"the engines were built by {backend} {built}, {installed} is installed",
            where="manifest.json",
            fix=f"install {built}, or build the bundle again",
        )


def check_target(target: str, device: DeviceInfo) -> None:
    """Engines run on the compute capability they were built for.

    Raises:
        EnvironmentLacks: another GPU.
    """
    wanted = lookup(TARGETS, target)
    if wanted.compute_capability != device.compute_capability:
        built, here = map(_dotted, (wanted.compute_capability, device.compute_capability))
        raise EnvironmentLacks(
            f"the engines are for compute capability {built} ({wanted.gpu}), "
            f"{device.name} has {here}",
            where="--target",
            fix="build the bundle for this GPU",
        )


def _dotted(capability: int) -> str:
    return f"{capability // 10}.{capability % 10}"


def _module(backend: str) -> Any:
    library = lookup(LIBRARIES, backend)
    try:
        return import_module(library.module)
    except (ImportError, OSError) as error:
        raise EnvironmentLacks(
            f"{backend} does not load: {error}",
            where=library.module,
            fix=how_to_install(library.extra),
        ) from error


def _logger(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        """Keeps the last error, which is all that a failed call leaves behind."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = "no reason given"

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.last = " ".join(message.split())[:300]

    return Log()
