"""What a recorded video consists of: one class for each kind of work on a stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fastwan.plugins.elementwise import MAX_SUMS, MAX_TERMS
from fastwan.plugins.regions.base import RegionOp
from fastwan.runtime.recording.machine import Device, DeviceEngine, Kernels
from fastwan.runtime.recording.tensors import Tensor


class LaunchContext(Protocol):
    """Where operations find what they enqueue on; `fastwan.runtime.device.player.Player` is one."""

    device: Device
    kernels: Kernels
    engines: Mapping[str, DeviceEngine]

    def address(self, tensor: Tensor) -> int:
        """Device or host address of the first element."""


@dataclass(kw_only=True, eq=False)
class Operation:
    """One enqueue.

    Attributes:
        stream: 0 computes, others run beside it.
        waits: events that have to be recorded before this runs; only of other streams.
        signal: event that is recorded after it; None where nobody waits for it.
    """

    stream: int = 0
    waits: list[int] = field(default_factory=list)
    signal: int | None = None

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return ()

    @property
    def writes(self) -> tuple[Tensor, ...]:
        return ()

    def enqueue(self, context: LaunchContext, stream: int) -> None:
        """Put the work on a stream; nothing to do for a barrier."""


@dataclass(kw_only=True, eq=False)
class Barrier(Operation):
    """Only the order between streams."""


@dataclass(kw_only=True, eq=False)
class RunEngine(Operation):
    """An engine with its inputs and outputs by name and the scratch that all engines share.

    Attributes:
        profile: optimization profile that takes the shapes of the inputs.
    """

    engine: str
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    scratch: Tensor
    profile: int = 0

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return tuple(self.inputs.values())

    @property
    def writes(self) -> tuple[Tensor, ...]:
        return (*self.outputs.values(), self.scratch)

    def enqueue(self, context: LaunchContext, stream: int) -> None:
        bindings = {
            name: (context.address(tensor), tensor.shape)
            for name, tensor in (*self.inputs.items(), *self.outputs.items())
        }
        engine = context.engines[self.engine]
        engine.enqueue(
            bindings, context.address(self.scratch), self.scratch.size, stream, self.profile
        )


@dataclass(kw_only=True, eq=False)
class LaunchRegion(Operation):
    """A region's kernels from the plugin library; its workspace is the shared scratch."""

    region: RegionOp
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    workspace: Tensor

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return self.inputs

    @property
    def writes(self) -> tuple[Tensor, ...]:
        return (*self.outputs, self.workspace)

    def enqueue(self, context: LaunchContext, stream: int) -> None:
        context.kernels.region(
            self.region,
            [context.address(tensor) for tensor in self.inputs],
            [context.address(tensor) for tensor in self.outputs],
            context.address(self.workspace),
            self.workspace.size,
            stream,
        )


@dataclass(kw_only=True, eq=False)
class Combine(Operation):
    """Weighted sums over some tensors in one kernel, each rounded to fp32 once.

    Attributes:
        terms: what is read.
        sums: for each output its (index of a term, weight) in the order of addition.
    """

    terms: list[Tensor]
    sums: list[list[tuple[int, float]]]
    outputs: list[Tensor]

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return tuple(self.terms)

    @property
    def writes(self) -> tuple[Tensor, ...]:
        return tuple(self.outputs)

    def extend(self, terms: Sequence[tuple[float, Tensor]], output: Tensor) -> bool:
        """Take in a further sum; False where it has to be a kernel of its own."""
        read = list(dict.fromkeys((*self.terms, *(tensor for _, tensor in terms))))
        full = len(self.outputs) == MAX_SUMS or len(read) > MAX_TERMS or len(terms) > MAX_TERMS
        if full or any(tensor in self.outputs for _, tensor in terms):
            return False
        self.terms = read
        self.sums.append([(read.index(tensor), weight) for weight, tensor in terms])
        self.outputs.append(output)
        return True

    def enqueue(self, context: LaunchContext, stream: int) -> None:
        context.kernels.combine(
            [(context.address(tensor), tensor.dtype) for tensor in self.terms],
            [context.address(tensor) for tensor in self.outputs],
            self.sums,
            self.outputs[0].elements,
            stream,
        )


@dataclass(kw_only=True, eq=False)
class Transfer(Operation):
    """One tensor becomes the content of another."""

    source: Tensor
    target: Tensor

    @property
    def reads(self) -> tuple[Tensor, ...]:
        return (self.source,)

    @property
    def writes(self) -> tuple[Tensor, ...]:
        return (self.target,)


@dataclass(kw_only=True, eq=False)
class Cast(Transfer):
    """Another dtype, or a view with gaps made contiguous."""

    def enqueue(self, context: LaunchContext, stream: int) -> None:
        context.kernels.cast(
            (context.address(self.source), self.source.dtype),
            (context.address(self.target), self.target.dtype),
            self.source.rows(),
            stream,
        )


@dataclass(kw_only=True, eq=False)
class Copy(Transfer):
    """Bytes from one contiguous tensor to another, to or from the host or on the device."""

    def enqueue(self, context: LaunchContext, stream: int) -> None:
        source, target = context.address(self.source), context.address(self.target)
        context.device.copy(target, source, self.source.size, stream)


@dataclass(kw_only=True, eq=False)
class Zero(Operation):
    """All bytes of a tensor become 0."""

    target: Tensor

    @property
    def writes(self) -> tuple[Tensor, ...]:
        return (self.target,)

    def enqueue(self, context: LaunchContext, stream: int) -> None:
        context.device.zero(context.address(self.target), self.target.size, stream)


@dataclass(kw_only=True, eq=False)
class Mark(Operation):
    """A point in time on a stream, by name; the end of a stage."""

    name: str

    def enqueue(self, context: LaunchContext, stream: int) -> None:
        context.device.mark(self.name, stream)


@dataclass(kw_only=True, eq=False)
class Signal(Operation):
    """Tells the host, while the work goes on, that the stream got here.

    Attributes:
        word: pinned; the host sets it to 0 before, and this to something else.
    """

    word: Tensor

    @property
    def writes(self) -> tuple[Tensor, ...]:
        return (self.word,)

    def enqueue(self, context: LaunchContext, stream: int) -> None:
        context.device.signal(context.address(self.word), stream)
