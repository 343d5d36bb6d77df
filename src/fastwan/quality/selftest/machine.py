"""How a run of ``selftest`` reaches driver, library and GPU; tests put stand-ins there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import NoReturn, Protocol

from fastwan.bundle import Bundle
from fastwan.config import TARGETS
from fastwan.cuda_driver import (
    compute_capability,
    cuda_device_count,
    driver_cuda_version,
    driver_fault,
)
from fastwan.engines.backend import BuiltEngine
from fastwan.errors import BadInput, EnvironmentLacks
from fastwan.install import how_to_install
from fastwan.manifest import Engine
from fastwan.plugins.regions.attention import A, AttentionRegion, L
from fastwan.plugins.regions.base import RegionOp
from fastwan.quality.selftest.report import Kind
from fastwan.runtime.device.session import Platform
from fastwan.runtime.recording.machine import Device, DeviceEngine
from fastwan.tables import lookup

DEVICES = ("auto", "cuda", "emulated", "host")
_HOPPER = 90


@dataclass(frozen=True)
class Driver:
    """What NVIDIA's driver says of itself.

    Attributes:
        cuda: version of CUDA that it knows, e.g. "13.0".
        devices: that it shows to this process.
        compute_capability: of the first, 10 major + minor.
    """

    cuda: str
    devices: int
    compute_capability: int | None


class Library(Protocol):
    """What is asked of the plugin library; `fastwan.plugins.loader.PluginLibrary` is one."""

    path: Path

    @property
    def build_info(self) -> dict[str, str]: ...

    @property
    def emulated(self) -> bool: ...

    @property
    def compute_capabilities(self) -> tuple[str, ...]: ...

    def check_device(self, device: int = 0, kinds: Iterable[type[RegionOp]] = ()) -> None: ...

    def workspace_bytes(self, region: RegionOp) -> int: ...

    def layout(self, region: AttentionRegion[A, L]) -> L: ...

    def enqueue_prologue(
        self,
        region: AttentionRegion[A, L],
        inputs: Sequence[int],
        outputs: Sequence[int],
        workspace: int,
        workspace_bytes: int,
        stream: int,
    ) -> None: ...


@dataclass(frozen=True)
class Probe:
    """A linear to run: the engine that was built of it, and its graph.

    Attributes:
        model: the graph, serialised.
        folder: where it may lie.
    """

    built: BuiltEngine
    model: bytes
    folder: Path


@dataclass(frozen=True)
class Machine:
    """How to reach what is tested; nothing is opened before its stage.

    Attributes:
        compute_capability: that the GPU must have; None takes that of the bundle's target.
        driver: None without one.
        packages: versions of what plays engines here, checked.
        device: the first visible GPU.
        library: the plugin library that a bundle uses here.
        platform: what the runtime's session runs on.
        linear: an engine of one linear, ready to be enqueued.
    """

    kind: Kind
    driver: Callable[[], Driver | None]
    packages: Callable[[Bundle], Mapping[str, str]]
    device: Callable[[], Device]
    library: Callable[[Bundle], Library]
    platform: Callable[[Bundle], Platform]
    linear: Callable[[Bundle, Probe], DeviceEngine]
    compute_capability: int | None = None

    def wanted_capability(self, bundle: Bundle) -> int:
        """Compute capability that the GPU must have, 10 major + minor."""
        if self.compute_capability is not None:
            return self.compute_capability
        return lookup(TARGETS, bundle.manifest.target).compute_capability


def machine_of(requested: str) -> Machine:
    """Resolve "auto", "cuda", "emulated" or "host"; "auto" is never "emulated".

    Raises:
        BadInput: another name.
    """
    if requested not in DEVICES:
        raise BadInput(
            f"unknown device {requested!r}", where="--device", fix="one of " + ", ".join(DEVICES)
        )
    if requested == "auto":
        requested = "cuda" if cuda_device_count() or driver_fault() else "host"
    return {"cuda": _cuda, "emulated": _emulated, "host": _host}[requested]()


def ask_driver() -> Driver | None:
    """The driver of this machine."""
    version = driver_cuda_version()
    if version is None:
        return None
    return Driver(version, cuda_device_count(), compute_capability())


def _device() -> Device:
    from fastwan.runtime.device.cuda import CudaDevice

    return CudaDevice()


def _cuda() -> Machine:
    from fastwan.runtime.device.platforms import cuda_platform

    return Machine(
        "cuda", ask_driver, _of_backend, _device, _bundled_library, cuda_platform, _built_linear
    )


def _bundled_library(bundle: Bundle) -> Library:
    from fastwan.plugins.loader import PluginLibrary
    from fastwan.runtime.device.kernels import library_path

    return PluginLibrary(library_path(bundle))


def _of_backend(bundle: Bundle) -> dict[str, str]:
    """Version of the bundle's backend, which has to be the one that built its engines."""
    from fastwan.runtime.device.engines import LIBRARIES, check_version

    backend = bundle.manifest.backend
    library = lookup(LIBRARIES, backend)
    try:
        version = str(import_module(library.module).__version__)
    except (ImportError, OSError) as error:
        raise EnvironmentLacks(
            f"{backend} does not load: {error}",
            where=library.module,
            fix=how_to_install(library.extra),
        ) from error
    check_version(backend, bundle.manifest.versions.get(backend, ""), version)
    return {backend: version}


def _built_linear(bundle: Bundle, probe: Probe) -> DeviceEngine:
    from fastwan.content_cache import ContentCache
    from fastwan.runtime.device.engines import LIBRARIES, open_built
    from fastwan.runtime.device.runtime_cache import RuntimeCache

    backend, plan = bundle.manifest.backend, bytes(probe.built.plan)
    cache = None
    if lookup(LIBRARIES, backend).compiles:
        # As the bundle's own engines are opened; nothing is kept of this one.
        cache = RuntimeCache(ContentCache("runtime"), hashlib.sha256(plan).hexdigest())
    return open_built(backend, "probe", engine_record(probe.built), plan, cache)


def _emulated() -> Machine:
    return Machine(
        "emulated", ask_driver, _torch_with_cuda, _device, _emulated_library, _emulated_platform,
        emulated_linear, _HOPPER,
    )  # fmt: skip


def _emulated_library(_: Bundle) -> Library:
    from fastwan.plugins.loader import PluginLibrary

    return PluginLibrary(emulated=True)


def _torch_with_cuda(_: Bundle) -> dict[str, str]:
    import torch

    if not torch.cuda.is_available():
        raise EnvironmentLacks(
            f"torch {torch.__version__} has no CUDA", where="torch", fix="install one that has"
        )
    return {"torch": str(torch.__version__)}


def _emulated_platform(bundle: Bundle) -> Platform:
    from fastwan.runtime.emulated.platform import emulated_platform

    return emulated_platform(bundle)


def emulated_linear(_: Bundle, probe: Probe, device: str = "cuda:0") -> DeviceEngine:
    """The linear computed by torch, as the engines of a bundle are on a Hopper GPU."""
    import torch

    from fastwan.onnx_guard import BundleGraph, checked_model
    from fastwan.runtime.emulated.engines import Torch, TorchEngine
    from fastwan.runtime.emulated.graph import TorchGraph

    model = checked_model(probe.model, probe.folder, "probe")
    source = BundleGraph(model, probe.model, probe.folder, "probe")
    where, record = Torch(torch.device(device)), engine_record(probe.built)
    with where.on(0):
        graph = TorchGraph(source, ["x"], ["y"], where.device)
    return TorchEngine(where, "probe", record, graph)


def _host() -> Machine:
    return Machine("host", ask_driver, _of_backend, _no_gpu, _bundled_library, _no_gpu, _no_gpu)


def _no_gpu(*_: object) -> NoReturn:
    raise EnvironmentLacks("the stages of the host use no GPU", where="selftest")


def engine_record(built: BuiltEngine) -> Engine:
    """What a manifest would say of an engine that was built here."""
    return Engine(
        file="probe.engine",
        component="dit",
        inputs=built.inputs,
        outputs=built.outputs,
        scratch_bytes=built.scratch_bytes,
    )
