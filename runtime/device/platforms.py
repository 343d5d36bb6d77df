"""What a session runs on, by device name."""

from __future__ import annotations

from fastwan.bundle import Bundle
from fastwan.config import TARGETS
from fastwan.runtime.device.null import NullDevice, NullEngine, NullKernels
from fastwan.runtime.device.session import Platform
from fastwan.tables import lookup


def null_platform(bundle: Bundle, device: NullDevice | None = None) -> Platform:
    """The recording device, pretending to be the bundle's target."""
    target = lookup(TARGETS, bundle.manifest.target)
    recorder = device or NullDevice(target.compute_capability)
    return Platform(
        recorder,
        NullKernels(recorder),
        lambda opened: {
            name: NullEngine(recorder, name, record)
            for name, record in opened.manifest.engines.items()
        },
    )


def cuda_platform(bundle: Bundle) -> Platform:
    """The first visible GPU.

    Raises:
        EnvironmentLacks: no GPU, a wrong one, or a package or the plugin library is missing.
    """
    from fastwan.plugins.loader import PluginLibrary
    from fastwan.runtime.device.cuda import CudaDevice
    from fastwan.runtime.device.engines import check_target, open_engines, runtime_cache
    from fastwan.runtime.device.kernels import PluginKernels, library_path

    device = CudaDevice()
    check_target(bundle.manifest.target, device.info)
    library = PluginLibrary(library_path(bundle))
    if bundle.manifest.regions:
        library.check_device()
    kernels = PluginKernels(library)
    cache = runtime_cache(bundle, device.info)
    return Platform(device, kernels, lambda opened: open_engines(opened, device.info, cache), cache)
