"""What the runtime asks of a device: CUDA's calls, no more, so that a recording one can stand in.

Addresses, streams, events and graphs are integers. Every call may raise `DeviceError`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fastwan.plugins.regions.base import RegionOp
from fastwan.runtime.model.executor import Array

Binding = tuple[int, tuple[int, ...]]
"""Address and shape of a tensor."""


class DeviceError(RuntimeError):
    """A device call failed.

    Attributes:
        kind: ``memory`` (nothing was allocated), ``capture`` (the work can run eagerly),
            ``sticky`` (this process can no longer use the device) or ``call``.
    """

    def __init__(self, message: str, kind: str = "call") -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class DeviceInfo:
    """What is there.

    Attributes:
        compute_capability: 10 major + minor, e.g. 120.
        driver: version of the driver's CUDA, e.g. "13.0".
        multiprocessors: 0 where not known.
    """

    name: str
    compute_capability: int
    driver: str
    total_bytes: int
    multiprocessors: int = 0


class Device(Protocol):
    """One GPU."""

    @property
    def info(self) -> DeviceInfo: ...

    def free_bytes(self) -> int:
        """Device memory that an allocation could get now."""

    def allocate(self, size: int) -> int:
        """Device memory, aligned to 512 bytes; a `DeviceError` of kind ``memory`` without it."""

    def free(self, address: int) -> None: ...

    def allocate_host(self, size: int) -> tuple[int, Array]:
        """Pinned host memory: its address, and the same bytes as a uint8 array."""

    def free_host(self, address: int) -> None: ...

    def new_stream(self) -> int:
        """A stream that does not synchronise with the default stream."""

    def new_event(self) -> int:
        """An event for order only."""

    def record(self, event: int, stream: int) -> None: ...

    def wait(self, stream: int, event: int) -> None: ...

    def mark(self, name: str, stream: int) -> None:
        """Record the time at which the stream gets here, inside a graph too."""

    def milliseconds(self, begin: str, end: str) -> float | None:
        """Time between the last passes of two marks; None where the device has no clock."""

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy between device memory and pinned host memory, or on the device."""

    def zero(self, address: int, size: int, stream: int) -> None: ...

    def signal(self, address: int, stream: int) -> None:
        """Set the word at an address of pinned memory to something else than 0, for `wait_for`.

        Everything that the stream copied to the host before is there by then.
        """

    def wait_for(self, address: int, stream: int) -> None:
        """Wait on the host until a word of pinned memory was signalled.

        Args:
            stream: that the signalling work ends on; the wait ends with it, too.
        """

    def host_access(
        self, *, reads: Sequence[tuple[int, int]] = (), writes: Sequence[tuple[int, int]] = ()
    ) -> None:
        """Say that the host now reads or writes pinned memory; for a device that checks it.

        Args:
            reads, writes: addresses [begin, end).
        """

    def synchronize(self, stream: int) -> None:
        """Wait on the host until the stream is done."""

    def begin_capture(self, stream: int) -> None: ...

    def end_capture(self, stream: int) -> int:
        """Instantiated graph of the calls since `begin_capture`.

        Raises:
            DeviceError: of kind ``capture``; the stream can be used again.
        """

    def abandon_capture(self, stream: int) -> None:
        """Leave a capture after an error in it; does nothing where none is open."""

    def launch(self, graph: int, stream: int) -> None: ...

    def destroy_graph(self, graph: int) -> None: ...


class DeviceEngine(Protocol):
    """One engine on a device."""

    @property
    def scratch_bytes(self) -> int:
        """Scratch that it needs on this device."""

    def enqueue(
        self,
        bindings: Mapping[str, Binding],
        scratch: int,
        scratch_bytes: int,
        stream: int,
        profile: int = 0,
    ) -> None:
        """Run on a stream, inputs and outputs by name; allocates and waits for nothing.

        Args:
            profile: optimization profile whose bounds hold the shapes of the inputs.
        """


class Kernels(Protocol):
    """The plugin library's launches; see csrc/fastwan_plugins.h."""

    def region(
        self,
        region: RegionOp,
        inputs: Sequence[int],
        outputs: Sequence[int],
        workspace: int,
        workspace_bytes: int,
        stream: int,
    ) -> None: ...

    def combine(
        self,
        terms: Sequence[tuple[int, str]],
        outputs: Sequence[int],
        sums: Sequence[Sequence[tuple[int, float]]],
        elements: int,
        stream: int,
    ) -> None:
        """``outputs[i]`` = sum of ``weight * terms[j]`` over (j, weight) of ``sums[i]``.

        Products and sums are rounded in fp64, in order, and the result to fp32, as on the CPU.

        Args:
            terms: address and dtype of each.
        """

    def cast(
        self,
        source: tuple[int, str],
        target: tuple[int, str],
        rows: tuple[int, int, int],
        stream: int,
    ) -> None:
        """Round to nearest even from one floating-point dtype to another.

        Args:
            rows: rows, columns and elements from row to row of the source; the target has no gaps.
        """
