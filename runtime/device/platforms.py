"""What a session runs on, by device name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fastwan.bundle import Bundle
from fastwan.config import TARGETS
from fastwan.errors import EnvironmentLacks
from fastwan.manifest import Engine
from fastwan.plugins.regions import RegionOp, region_op
from fastwan.runtime.device.first_load import FirstLoad, first_load
from fastwan.runtime.device.kernel_choice import KernelChoice, choose
from fastwan.runtime.device.null import NullDevice, NullEngine, NullKernels
from fastwan.runtime.device.session import Platform
from fastwan.runtime.recording.machine import Device, DeviceEngine, DeviceError
from fastwan.tables import lookup

if TYPE_CHECKING:
    from fastwan.plugins.loader import PluginLibrary


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
    from fastwan.plugins.regions import REGIONS
    from fastwan.runtime.device.cuda import CudaDevice
    from fastwan.runtime.device.engines import check_target, open_engines, runtime_cache
    from fastwan.runtime.device.kernels import PluginKernels, library_path, normals_of

    device = CudaDevice()
    check_target(bundle.manifest.target, device.info)
    path = library_path(bundle)
    library = PluginLibrary(path)
    if regions := bundle.manifest.regions.values():
        library.check_device(kinds={REGIONS[node.op] for each in regions for node in each.nodes})
    first = first_load(bundle, device.info, path)
    choices = choose_kernels(bundle, device, library, first)
    kernels = PluginKernels(
        library, {region: region.alternatives[each.kernel] for region, each in choices.items()}
    )
    cache = runtime_cache(bundle, device.info)

    def fallbacks(opened: Bundle) -> Mapping[str, DeviceEngine]:
        return open_engines(opened, device.info, cache, opened.manifest.fallback_engines)

    return Platform(
        device,
        kernels,
        lambda opened: open_engines(opened, device.info, cache),
        cache,
        open_fallbacks=fallbacks,
        first_load=first,
        choices=tuple(choices.values()),
        normals=normals_of(library),
    )


def choose_kernels(
    bundle: Bundle, device: Device, library: PluginLibrary, first: FirstLoad
) -> dict[RegionOp, KernelChoice]:
    """The fastest kernel of each region of a bundle on a GPU.

    Raises:
        VerificationFailed: no kernel of a region agrees with its definition.
        EnvironmentLacks: the device is lost.
    """
    from fastwan.runtime.device.kernel_trial import AttentionTrial
    from fastwan.runtime.device.kernels import PluginKernels

    apart = 128 if library.emulated else 64
    trial = AttentionTrial(device, PluginKernels(library), library.layout, apart)
    regions = [
        region_op(node, {spec.name: spec for spec in region.tensors})
        for region in bundle.manifest.regions.values()
        for node in region.nodes
    ]
    try:
        return choose(regions, trial, first)
    except DeviceError as error:
        raise EnvironmentLacks(
            f"the device failed: {error}", where="CUDA", fix="start a new process"
        ) from error
