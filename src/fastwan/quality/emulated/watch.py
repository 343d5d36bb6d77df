"""A platform that tells what passed through it: regions with their references, hidden states."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from fastwan.bundle import Bundle
from fastwan.plugins.regions.base import RegionOp, dims
from fastwan.quality.region_figures import RegionFigure, compare_region
from fastwan.runtime.device.session import Platform
from fastwan.runtime.emulated.engines import Torch
from fastwan.runtime.emulated.fp4 import Operand
from fastwan.runtime.recording.machine import Binding, Device, DeviceEngine, Kernels
from fastwan.runtime.recording.operations import LaunchRegion

HIDDEN = re.compile(r"(embed\.hidden|blocks\.\d+\.hidden_out)")
"""Values of an engine or a region that a block of the transformer begins or ends with."""


@dataclass
class Watch:
    """What was seen while `on`.

    Attributes:
        operands: weights of all FP4 GEMMs as they are multiplied, [K, N], by their names in the
            graph; seen when the engines were opened, or when they first ran where they are given
            their weights.
        launches: the regions that will be launched, in their order.
        regions: one of each of them that was.
        hidden: by name, on the device.
    """

    on: bool = False
    operands: dict[str, Operand] = field(default_factory=dict)
    launches: Sequence[LaunchRegion] = ()
    regions: list[RegionFigure] = field(default_factory=list)
    hidden: dict[str, Tensor] = field(default_factory=dict)


class WatchedKernels:
    """Kernels whose regions are held against their references while a watch is on.

    Args:
        at: makes a tensor over memory of the session.
    """

    def __init__(self, kernels: Kernels, device: Device, at: Torch, watch: Watch) -> None:
        self._kernels, self._device, self._at, self._watch = kernels, device, at, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernels, name)

    def region(
        self,
        region: RegionOp,
        inputs: Sequence[int],
        outputs: Sequence[int],
        workspace: int,
        workspace_bytes: int,
        stream: int,
    ) -> None:
        self._kernels.region(region, inputs, outputs, workspace, workspace_bytes, stream)
        if self._watch.on:
            self._device.synchronize(stream)
            given, got = region_tensors(self._at, region, inputs, outputs)
            launch = self._watch.launches[len(self._watch.regions)]
            self._watch.regions.append(compare_region(region, given, got))
            for tensor, made in zip(launch.outputs, got, strict=True):
                if HIDDEN.fullmatch(tensor.buffer.name):
                    self._watch.hidden[tensor.buffer.name] = made.clone()


def region_tensors(
    at: Torch, region: RegionOp, inputs: Sequence[int], outputs: Sequence[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and outputs of a region, over the memory itself."""
    given, got = (
        [
            at.tensor(address, dims(spec), spec.dtype)
            for spec, address in zip(specs, addresses, strict=True)
        ]
        for specs, addresses in ((region.inputs, inputs), (region.outputs, outputs))
    )
    return given, got


class WatchedEngine:
    """An engine of which the hidden states that it makes are kept while a watch is on."""

    def __init__(
        self,
        engine: DeviceEngine,
        dtypes: Mapping[str, str],
        at: Torch,
        watch: Watch,
        device: Device,
    ) -> None:
        self._engine, self._dtypes, self._at = engine, dtypes, at
        self._watch, self._device = watch, device

    @property
    def scratch_bytes(self) -> int:
        return self._engine.scratch_bytes

    def enqueue(
        self,
        bindings: Mapping[str, Binding],
        scratch: int,
        scratch_bytes: int,
        stream: int,
        profile: int = 0,
    ) -> None:
        self._engine.enqueue(bindings, scratch, scratch_bytes, stream, profile)
        if self._watch.on:
            self._device.synchronize(stream)
            for name, operand in getattr(self._engine, "operands", {}).items():
                self._watch.operands.setdefault(name, operand)
            for name in self._dtypes.keys() & bindings.keys():
                made = self._at.tensor(*bindings[name], self._dtypes[name])
                self._watch.hidden[name] = made.clone()


def watched(platform: Platform, at: Torch) -> tuple[Platform, Watch]:
    """A platform over another one, and what it sees."""
    watch = Watch()

    def engines(bundle: Bundle) -> Mapping[str, DeviceEngine]:
        records = bundle.manifest.engines
        opened = platform.open_engines(bundle)
        for engine in opened.values():
            watch.operands.update(getattr(engine, "operands", {}))
        return {
            name: WatchedEngine(
                engine,
                {s.name: s.dtype for s in records[name].outputs if HIDDEN.fullmatch(s.name)},
                at,
                watch,
                platform.device,
            )
            for name, engine in opened.items()
        }

    kernels = WatchedKernels(platform.kernels, platform.device, at, watch)
    return replace(platform, kernels=kernels, open_engines=engines), watch
