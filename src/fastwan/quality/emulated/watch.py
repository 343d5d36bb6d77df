"""A platform that tells what passed through it: regions with their references, hidden states."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from fastwan.bundle import Bundle
from fastwan.errors import BadInput
from fastwan.plugins import reference
from fastwan.plugins.regions.base import RegionOp
from fastwan.plugins.regions.sage_attention3 import SageAttention3
from fastwan.runtime.device.session import Platform
from fastwan.runtime.emulated.engines import Torch
from fastwan.runtime.emulated.fp4 import Operand
from fastwan.runtime.recording.machine import Binding, Device, DeviceEngine, Kernels

HIDDEN = re.compile(r"(embed\.hidden|blocks\.\d+\.hidden_out)")
"""Values between engines that a block of the transformer begins or ends with."""


@dataclass(frozen=True)
class RegionFigure:
    """A region's output against its reference, for the inputs that it was given.

    Attributes:
        relative_l2: of the true rows.
        equal: share of equal elements among them.
        padding_is_zero: of the rows behind them.
    """

    name: str
    relative_l2: float
    equal: float
    padding_is_zero: bool


@dataclass
class Watch:
    """What was seen while `on`.

    Attributes:
        operands: weights of all FP4 GEMMs as they are multiplied, [K, N], by their names in the
            graph; seen when the engines were opened.
        regions: one a launch, in their order.
        hidden: by name, on the device.
    """

    on: bool = False
    operands: dict[str, Operand] = field(default_factory=dict)
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
            self._watch.regions.append(self._compare(region, inputs, outputs))

    def _compare(
        self, region: RegionOp, inputs: Sequence[int], outputs: Sequence[int]
    ) -> RegionFigure:
        given, got = region_tensors(self._at, region, inputs, outputs)
        return compare_region(f"region {len(self._watch.regions)}", region, given, got)


def region_tensors(
    at: Torch, region: RegionOp, inputs: Sequence[int], outputs: Sequence[int]
) -> tuple[list[Tensor], Tensor]:
    """Inputs and output of a region of one output, over the memory itself."""
    specs = zip((*region.inputs, *region.outputs), (*inputs, *outputs), strict=True)
    *given, got = (
        at.tensor(address, tuple(map(int, spec.shape)), spec.dtype) for spec, address in specs
    )
    return given, got


def compare_region(
    name: str, region: RegionOp, given: Sequence[Tensor], got: Tensor
) -> RegionFigure:
    """A region's output against the reference of its kind.

    Args:
        given: the inputs, in the order of the region's.
        got: the output.
    """
    expected = reference_of(region)(*given)
    tokens = region.attributes.num_tokens if isinstance(region, SageAttention3) else got.shape[1]
    a, b = expected[:, :tokens].double(), got[:, :tokens].double()
    norm = float(a.norm())
    return RegionFigure(
        name=name,
        relative_l2=float((a - b).norm()) / norm if norm else float("inf"),
        equal=float((expected[:, :tokens] == got[:, :tokens]).double().mean()),
        padding_is_zero=not bool(got[:, tokens:].any()),
    )


def reference_of(region: RegionOp) -> Callable[..., Tensor]:
    """What a region computes, in torch: a function of its inputs to its output.

    Raises:
        BadInput: a kind of region that has no reference.
    """
    if not isinstance(region, SageAttention3):
        raise BadInput(f"no reference of {region}", where="manifest.json")
    attributes = region.attributes

    def attention(*tensors: Tensor) -> Tensor:
        return reference.attention_node(
            *tensors,
            num_heads=attributes.num_heads,
            num_tokens=attributes.num_tokens,
            eps=attributes.eps,
            softmax_scale=attributes.softmax_scale,
            exact_max=attributes.exact_max,
        )

    return attention


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
