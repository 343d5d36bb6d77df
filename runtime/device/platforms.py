"""What a session runs on, by device name."""

from __future__ import annotations

from collections.abc import Mapping

from fastwan.bundle import Bundle
from fastwan.config import TARGETS
from fastwan.manifest import Engine
from fastwan.runtime.device.null import NullDevice, NullEngine, NullKernels
from fastwan.runtime.device.session import Platform
from fastwan.runtime.recording.machine import DeviceEngine
from fastwan.tables import lookup


def null_platform(bundle: Bundle, device: NullDevice | None = None) -> Platform:
    """The recording device, pretending to be the bundle's target.

    It computes nothing, so no kernels are compared.
    """
    target = lookup(TARGETS, bundle.manifest.target)
    recorder = device or NullDevice(target.compute_capability)

    def engines(records: Mapping[str, Engine]) -> dict[str, NullEngine]:
        return {name: NullEngine(recorder, name, record) for name, record in records.items()}

    return Platform(
        recorder,
        NullKernels(recorder),
        lambda opened: engines(opened.manifest.engines),
        open_fallbacks=lambda opened: engines(opened.manifest.fallback_engines),
    )


def cuda_platform(bundle: Bundle) -> Platform:
    """The first visible GPU.

    Raises:
        EnvironmentLacks: no GPU, a wrong one, or a package or the plugin library is missing.
    """
    from fastwan.plugins.loader import PluginLibrary
    from fastwan.runtime.device.cuda import CudaDevice
    from fastwan.runtime.device.engines import check_target, open_engines, runtime_cache
    from fastwan.runtime.device.first_load import first_load
    from fastwan.runtime.device.kernels import PluginKernels, library_path

    device = CudaDevice()
    check_target(bundle.manifest.target, device.info)
    path = library_path(bundle)
    library = PluginLibrary(path)
    if bundle.manifest.regions:
        library.check_device()
    kernels = PluginKernels(library)
    cache = runtime_cache(bundle, device.info)

    def fallbacks(opened: Bundle) -> Mapping[str, DeviceEngine]:
        return open_engines(opened, device.info, cache, opened.manifest.fallback_engines)

    return Platform(
        device,
        kernels,
        lambda opened: open_engines(opened, device.info, cache),
        cache,
        open_fallbacks=fallbacks,
        first_load=first_load(bundle, device.info, path),
    )
