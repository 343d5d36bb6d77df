"""The emulated platform in host memory: torch on the CPU, regions by their references."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastwan.bundle import Bundle, open_bundle
from fastwan.plugins.regions.base import RegionOp
from fastwan.quality.emulated.full_size import FullSize, Setting
from fastwan.quality.emulated.watch import region_tensors
from fastwan.quality.verify.subject import Subject
from fastwan.runtime.device.first_load import FirstLoad
from fastwan.runtime.device.null import NullDevice, NullKernels
from fastwan.runtime.device.session import Platform
from fastwan.runtime.emulated.engines import (
    Torch,
    TorchEngine,
    open_emulated,
    open_emulated_fallbacks,
)
from fastwan.runtime.emulated.fp4 import Operand
from testkit.host_device import HostDevice, HostKernels, LateEngine

CPU = torch.device("cpu")


class TorchHostEngine(LateEngine):
    """A `TorchEngine` that runs when its stream does."""

    def __init__(self, device: HostDevice, name: str, bundle: Bundle, engine: TorchEngine) -> None:
        super().__init__(device, name, bundle)
        self._engine = engine

    @property
    def operands(self) -> dict[str, Operand]:
        return self._engine.operands

    def run(self, bindings: Mapping[str, Any]) -> None:
        self._engine.enqueue(bindings, 0, 0, 0)


Reference = Callable[..., Sequence[Tensor]]
Fault = Callable[[Reference, Sequence[Tensor]], Sequence[Tensor]]
"""What a kernel at fault writes: of what it should compute, and its inputs."""


class ReferenceKernels(HostKernels):
    """Regions computed by their references, but for those at fault.

    Args:
        faults: by kind of region.
    """

    def __init__(self, device: HostDevice, faults: Mapping[str, Fault] | None = None) -> None:
        super().__init__(device)
        self._faults = faults or {}

    def region(
        self,
        region: RegionOp,
        inputs: Sequence[int],
        outputs: Sequence[int],
        workspace: int,
        workspace_bytes: int,
        stream: int,
    ) -> None:
        recorder = NullDevice()
        NullKernels(recorder).region(region, inputs, outputs, workspace, workspace_bytes, stream)
        (call,) = recorder.calls
        self._submit(call, lambda: self.compute(region, inputs, outputs))

    def compute(self, region: RegionOp, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """Write what the region makes of its inputs."""
        given, made = self.tensors(region, inputs, outputs)
        fault = self._faults.get(region.op)
        values = fault(region.reference, given) if fault else region.reference(*given)
        for out, value in zip(made, values, strict=True):
            out.copy_(value)

    def tensors(
        self, region: RegionOp, inputs: Sequence[int], outputs: Sequence[int]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Inputs and outputs of a region, over the memory itself."""
        return region_tensors(Torch(CPU), region, inputs, outputs)


def emulated_host_platform(
    device: HostDevice,
    kernels: ReferenceKernels | None = None,
    first_load: FirstLoad | None = None,
) -> Platform:
    """A platform like `emulated_platform` without a GPU."""

    def late(bundle: Bundle, engines: Mapping[str, TorchEngine]) -> dict[str, TorchHostEngine]:
        return {
            name: TorchHostEngine(device, name, bundle, engine) for name, engine in engines.items()
        }

    return Platform(
        device,
        kernels or ReferenceKernels(device),
        lambda bundle: late(bundle, open_emulated(bundle, CPU)),
        open_fallbacks=lambda bundle: late(bundle, open_emulated_fallbacks(bundle, CPU)),
        first_load=first_load,
    )


def opened(
    bundle: Path,
    kernels: type[ReferenceKernels] = ReferenceKernels,
    change: Callable[[Platform], Platform] = lambda platform: platform,
) -> FullSize:
    """The checks of the full size over a bundle on such a platform.

    Args:
        change: what becomes of the platform before.
    """
    subject, device = Subject(open_bundle(bundle)), HostDevice()
    platform = change(emulated_host_platform(device, kernels(device)))
    return FullSize(subject, Setting(platform, Torch(CPU), subject.attention.reference))
