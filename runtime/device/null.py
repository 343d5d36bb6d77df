"""The NULL device: everything the runtime does, nothing computed.

Every call is written down with the bytes it reads and writes, so that a machine without a GPU
counts launches and copies and finds races (`fastwan.quality.races`). Addresses are invented.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fastwan.dtypes import ITEM_BYTES
from fastwan.manifest import Engine, TensorSpec
from fastwan.plugins.regions.base import RegionOp
from fastwan.runtime.model.executor import Array
from fastwan.runtime.recording.machine import Binding, DeviceError, DeviceInfo
from fastwan.runtime.recording.tensors import allocate

Range = tuple[int, int]
"""Addresses [begin, end)."""

Kind = Literal[
    "engine", "region", "combine", "cast", "copy", "zero", "record", "wait", "mark", "signal",
    "launch", "synchronize", "wait_for", "host", "allocate", "free",
]  # fmt: skip

HOST = -1
"""The stream of what the host does itself."""

WORD = 4
"""Bytes that a signal writes."""

ENQUEUES = ("engine", "region", "combine", "cast", "copy", "zero")
"""Kinds that put work on a stream."""


@dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        name: engine, region or mark; direction of a copy; empty otherwise.
        event: of ``record`` and ``wait``.
        graph: calls that a ``launch`` replays.
    """

    kind: Kind
    name: str = ""
    stream: int = 0
    reads: tuple[Range, ...] = ()
    writes: tuple[Range, ...] = ()
    event: int = -1
    graph: tuple[Call, ...] = ()


class NullDevice:
    """A `Device` that records.

    Attributes:
        calls: everything so far, in the order of the host; graphs as one call each.
        total_bytes: device memory it pretends to have.
    """

    FIRST_ADDRESS = 1 << 40
    HOST_ADDRESS = 1 << 50

    def __init__(self, compute_capability: int = 120, total_bytes: int = 1 << 40) -> None:
        self.calls: list[Call] = []
        self.total_bytes = total_bytes
        self._capability = compute_capability
        self._next = {"device": self.FIRST_ADDRESS, "host": self.HOST_ADDRESS}
        self._sizes: dict[int, int] = {}
        self._handles = 0
        self._capture: list[Call] | None = None
        self._graphs: dict[int, tuple[Call, ...]] = {}

    @property
    def info(self) -> DeviceInfo:
        return DeviceInfo("NULL device", self._capability, "none", self.total_bytes)

    def free_bytes(self) -> int:
        used = sum(size for address, size in self._sizes.items() if address < self.HOST_ADDRESS)
        return self.total_bytes - used

    def allocate(self, size: int) -> int:
        if size > self.free_bytes():
            raise DeviceError(f"out of memory for {size:,} bytes", "memory")
        return self._allocate("device", size)

    def allocate_host(self, size: int) -> tuple[int, Array]:
        return self._allocate("host", size), np.zeros(size, np.uint8)

    def _allocate(self, space: str, size: int) -> int:
        address = self._next[space]
        self._next[space] += -(-max(size, 1) // 4096) * 4096
        self._sizes[address] = size
        self.add(Call("allocate", space))
        return address

    def free(self, address: int) -> None:
        del self._sizes[address]
        self.add(Call("free"))

    free_host = free

    def new_stream(self) -> int:
        return self._handle()

    def new_event(self) -> int:
        return self._handle()

    def _handle(self) -> int:
        self._handles += 1
        return self._handles

    def record(self, event: int, stream: int) -> None:
        self.add(Call("record", stream=stream, event=event))

    def wait(self, stream: int, event: int) -> None:
        self.add(Call("wait", stream=stream, event=event))

    def mark(self, name: str, stream: int) -> None:
        self.add(Call("mark", name, stream))

    def milliseconds(self, begin: str, end: str) -> float | None:
        return None

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        name = f"{self._space(source)} to {self._space(target)}"
        reads, writes = ((source, source + size),), ((target, target + size),)
        self.add(Call("copy", name, stream, reads, writes))

    def _space(self, address: int) -> str:
        return "host" if address >= self.HOST_ADDRESS else "device"

    def zero(self, address: int, size: int, stream: int) -> None:
        self.add(Call("zero", stream=stream, writes=((address, address + size),)))

    def signal(self, address: int, stream: int) -> None:
        self.add(Call("signal", stream=stream, writes=((address, address + WORD),)))

    def wait_for(self, address: int, stream: int) -> None:
        self.add(Call("wait_for", stream=HOST, reads=((address, address + WORD),)))

    def host_access(self, *, reads: Sequence[Range] = (), writes: Sequence[Range] = ()) -> None:
        self.add(Call("host", stream=HOST, reads=tuple(reads), writes=tuple(writes)))

    def synchronize(self, stream: int) -> None:
        self.add(Call("synchronize", stream=stream))

    def begin_capture(self, stream: int) -> None:
        self._capture = []

    def end_capture(self, stream: int) -> int:
        captured, self._capture = self._capture, None
        if captured is None:
            raise DeviceError("no capture is open", "capture")
        graph = self._handle()
        self._graphs[graph] = tuple(captured)
        return graph

    def abandon_capture(self, stream: int) -> None:
        self._capture = None

    def launch(self, graph: int, stream: int) -> None:
        self.add(Call("launch", stream=stream, graph=self._graphs[graph]))

    def destroy_graph(self, graph: int) -> None:
        del self._graphs[graph]

    def add(self, call: Call) -> None:
        """Write a call down, into the open capture if there is one."""
        (self.calls if self._capture is None else self._capture).append(call)


class NullEngine:
    """An engine that records what it would touch, by the manifest's own account.

    Args:
        name: of the engine.
        record: its inputs and outputs.
    """

    def __init__(self, device: NullDevice, name: str, record: Engine) -> None:
        self._device = device
        self._name = name
        self._record = record

    @property
    def scratch_bytes(self) -> int:
        return self._record.scratch_bytes

    def enqueue(
        self,
        bindings: Mapping[str, Binding],
        scratch: int,
        scratch_bytes: int,
        stream: int,
        profile: int = 0,
    ) -> None:
        record = self._record
        self._check_profile(bindings, profile)
        if scratch_bytes < record.scratch_bytes:
            raise DeviceError(f"{self._name} wants {record.scratch_bytes:,} bytes of scratch")
        given = (*record.inputs, *record.constants)
        reads = [_range(spec, *bindings[spec.name]) for spec in given]
        writes = [_range(spec, *bindings[spec.name]) for spec in record.outputs]
        writes.append((scratch, scratch + record.scratch_bytes))
        self._device.add(Call("engine", self._name, stream, tuple(reads), tuple(writes)))

    def _check_profile(self, bindings: Mapping[str, Binding], profile: int) -> None:
        """Refuse a shape outside the selected profile, as TensorRT does."""
        for name, profiles in self._record.profiles.items():
            shape = bindings[name][1]
            least, _, most = profiles[profile]
            if not all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
                raise DeviceError(
                    f"{self._name}: {name} has shape {shape}, profile {profile} takes {least} to "
                    f"{most}"
                )


def _range(spec: TensorSpec, address: int, shape: tuple[int, ...] | None = None) -> Range:
    return address, address + allocate(spec, shape).size


class NullKernels:
    """`Kernels` that record."""

    def __init__(self, device: NullDevice) -> None:
        self._device = device

    def region(
        self,
        region: RegionOp,
        inputs: Sequence[int],
        outputs: Sequence[int],
        workspace: int,
        workspace_bytes: int,
        stream: int,
    ) -> None:
        reads = [_range(spec, at) for spec, at in zip(region.inputs, inputs, strict=True)]
        writes = [_range(spec, at) for spec, at in zip(region.outputs, outputs, strict=True)]
        writes.append((workspace, workspace + workspace_bytes))
        self._device.add(Call("region", str(region), stream, tuple(reads), tuple(writes)))

    def combine(
        self,
        terms: Sequence[tuple[int, str]],
        outputs: Sequence[int],
        sums: Sequence[Sequence[tuple[int, float]]],
        elements: int,
        stream: int,
    ) -> None:
        reads = [(at, at + elements * ITEM_BYTES[dtype]) for at, dtype in terms]
        writes = [(at, at + elements * 4) for at in outputs]
        self._device.add(Call("combine", "", stream, tuple(reads), tuple(writes)))

    def cast(
        self,
        source: tuple[int, str],
        target: tuple[int, str],
        rows: tuple[int, int, int],
        stream: int,
    ) -> None:
        count, columns, pitch = rows
        (read, read_type), (write, write_type) = source, target
        size = ITEM_BYTES[read_type]
        reads = tuple(
            (read + row * pitch * size, read + (row * pitch + columns) * size)
            for row in range(count)
        )
        end = write + count * columns * ITEM_BYTES[write_type]
        self._device.add(Call("cast", "", stream, reads, ((write, end),)))
