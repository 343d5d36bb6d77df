"""A Hopper GPU in place of a bundle's target, with the target's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from fastwan.bundle import Bundle
from fastwan.config import TARGETS
from fastwan.errors import EnvironmentLacks
from fastwan.runtime.device.session import Platform
from fastwan.runtime.recording.machine import DeviceEngine
from fastwan.tables import lookup


def emulated_platform(bundle: Bundle) -> Platform:
    """The first visible GPU, if it has compute capability 9.0.

    Engines are computed by torch from the exported graphs, see `TorchEngine`; regions are the
    plugin library's own kernels, with the FP4 MMA replaced by an exact equivalent. Session, memory
    plan, player and graph are those of a Blackwell GPU. A kernel whose schedule depends on the
    number of multiprocessors is launched for those of the bundle's target.

    Raises:
        EnvironmentLacks: no such GPU, no torch with CUDA, or no emulated plugin library.
    """
    import torch

    from fastwan.plugins.loader import PluginLibrary
    from fastwan.runtime.device.cuda import CudaDevice
    from fastwan.runtime.device.first_load import first_load
    from fastwan.runtime.device.kernels import PluginKernels, normals_of

    if not torch.cuda.is_available():
        raise EnvironmentLacks(
            f"torch {torch.__version__} has no CUDA", where="torch", fix="install one that has"
        )
    library = PluginLibrary(emulated=True)
    device = CudaDevice()
    library.check_device()
    # What is computed here must not be taken for what a Blackwell GPU gave, or this one in bf16.
    processors = lookup(TARGETS, bundle.manifest.target).processors
    name = f"{device.info.name}, FP4 emulated as on {processors} multiprocessors"
    device.info = replace(device.info, name=name)

    gpu = torch.device("cuda", 0)

    def engines(opened: Bundle) -> Mapping[str, DeviceEngine]:
        from fastwan.runtime.emulated.engines import open_emulated

        return open_emulated(opened, gpu)

    def fallbacks(opened: Bundle) -> Mapping[str, DeviceEngine]:
        from fastwan.runtime.emulated.engines import open_emulated_fallbacks

        return open_emulated_fallbacks(opened, gpu)

    return Platform(
        device,
        PluginKernels(library),
        engines,
        open_fallbacks=fallbacks,
        first_load=first_load(bundle, device.info, library.path),
        processors=processors,
        normals=normals_of(library),
    )
