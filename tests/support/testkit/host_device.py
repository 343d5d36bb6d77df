"""A device in host memory: the null device's bookkeeping, with the work really done, late."""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes  # noqa: F401
import numpy as np

from fastwan.bundle import Bundle
from fastwan.dtypes import PAIRED
from fastwan.runtime.cpu.executor import cpu_executor
from fastwan.runtime.device.null import WORD, Call, NullDevice, NullEngine, NullKernels
from fastwan.runtime.device.session import Platform
from fastwan.runtime.recording.machine import DeviceError


def at(address: int, dtype: str, count: int) -> np.ndarray:
    """Elements at an address."""
    kind = np.dtype(dtype)
    raw = (ctypes.c_uint8 * (count * kind.itemsize)).from_address(address)
    return np.frombuffer(raw, kind)


@dataclass(frozen=True)
class Work:
    """One item of a stream's queue: a call and what it does."""

    call: Call
    do: Callable[[], None] = lambda: None


@dataclass
class HostDevice(NullDevice):
    """Streams are queues that run when the host waits, in an order that is allowed but unkind.

    Attributes:
        late: stream index that runs only when nothing else can; 0 the first stream, 1 the second.
        faults: `DeviceError` by name of the method that raises it, once.
    """

    late: int = 1
    faults: dict[str, DeviceError] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self._buffers: dict[int, np.ndarray] = {}
        self._queues: dict[int, deque[Work]] = {}
        self._open: list[Work] | None = None
        self._recorded: dict[int, list[Work]] = {}
        self._pending: dict[int, int] = {}
        self.lost: DeviceError | None = None

    def fail(self, method: str) -> None:
        if self.lost is not None:
            raise self.lost
        if method in self.faults:
            error = self.faults.pop(method)
            if error.kind == "sticky":
                self.lost = error
            raise error

    def allocate(self, size: int) -> int:
        self.fail("allocate")
        return self._make("device", size)

    def allocate_host(self, size: int) -> tuple[int, np.ndarray]:
        self.fail("allocate_host")
        address = self._make("host", size)
        return address, at(address, "uint8", size)

    def _make(self, space: str, size: int) -> int:
        # Garbage, so that a read of what nobody wrote shows.
        buffer = np.full(size + 512, 0xA5, np.uint8)
        address = -(-buffer.ctypes.data // 512) * 512
        self._buffers[address] = buffer
        self._sizes[address] = size if space == "device" else 0
        self.calls.append(Call("allocate", space))
        return address

    def free(self, address: int) -> None:
        self.fail("free")
        super().free(address)
        del self._buffers[address]

    free_host = free

    def new_stream(self) -> int:
        stream = super().new_stream()
        self._queues[stream] = deque()
        return stream

    def add(self, call: Call) -> None:
        self.submit(call, lambda: None)

    def submit(self, call: Call, do: Callable[[], None]) -> None:
        """Queue work, into the open capture if there is one."""
        if call.kind in ("host", "allocate", "free", "synchronize", "wait_for"):
            self.calls.append(call)
            return
        self.fail(call.kind)
        if self._open is not None:
            self._open.append(Work(call, do))
            return
        self.calls.append(call)
        self._push(Work(call, do))

    def _push(self, work: Work) -> None:
        if work.call.kind == "record":
            self._pending[work.call.event] = self._pending.get(work.call.event, 0) + 1
        self._queues[work.call.stream].append(work)

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        reads, writes = ((source, source + size),), ((target, target + size),)
        self.submit(
            Call("copy", "", stream, reads, writes), lambda: ctypes.memmove(target, source, size)
        )

    def zero(self, address: int, size: int, stream: int) -> None:
        self.submit(
            Call("zero", stream=stream, writes=((address, address + size),)),
            lambda: ctypes.memset(address, 0, size),
        )

    def signal(self, address: int, stream: int) -> None:
        self.submit(
            Call("signal", stream=stream, writes=((address, address + WORD),)),
            lambda: ctypes.memset(address, 1, WORD),
        )

    def wait_for(self, address: int, stream: int) -> None:
        super().wait_for(address, stream)
        self._run(lambda: at(address, "uint32", 1)[0] != 0 or not self._queues[stream])
        self.fail("wait_for")

    def begin_capture(self, stream: int) -> None:
        self.fail("begin_capture")
        self._open = []

    def end_capture(self, stream: int) -> int:
        captured, self._open = self._open, None
        self.fail("end_capture")
        assert captured is not None
        graph = self._handle()
        self._recorded[graph] = captured
        self._graphs[graph] = tuple(work.call for work in captured)
        return graph

    def abandon_capture(self, stream: int) -> None:
        self._open = None

    def launch(self, graph: int, stream: int) -> None:
        self.fail("launch")
        self.calls.append(Call("launch", stream=stream, graph=self._graphs[graph]))
        for work in self._recorded[graph]:
            self._push(work)

    def synchronize(self, stream: int) -> None:
        self.calls.append(Call("synchronize", stream=stream))
        self._run(lambda: not self._queues[stream])
        self.fail("synchronize")

    def _run(self, until: Callable[[], bool]) -> None:
        order = sorted(self._queues, key=lambda s: (s - 1) % 2 == self.late)
        while not until():
            if not any(self._advance(each) for each in order):
                raise AssertionError("the streams wait for each other")

    def _advance(self, stream: int) -> bool:
        queue = self._queues[stream]
        if not queue:
            return False
        call = queue[0].call
        if call.kind == "wait" and self._pending.get(call.event, 0):
            return False
        if call.kind == "record":
            self._pending[call.event] -= 1
        queue.popleft().do()
        return True


class LateEngine(NullEngine, ABC):
    """An engine whose work is queued; a subclass says what it is."""

    def __init__(self, device: HostDevice, name: str, bundle: Bundle) -> None:
        manifest = bundle.manifest
        records = {**manifest.engines, **manifest.fallback_engines}
        super().__init__(device, name, records[name])

    def enqueue(
        self,
        bindings: Mapping[str, Any],
        scratch: int,
        scratch_bytes: int,
        stream: int,
        profile: int = 0,
    ) -> None:
        recorder = NullDevice()
        NullEngine(recorder, self._name, self._record).enqueue(
            bindings, scratch, scratch_bytes, stream, profile
        )
        (call,) = recorder.calls
        bound = dict(bindings)
        host: Any = self._device
        host.submit(call, lambda: self.run(bound))

    @abstractmethod
    def run(self, bindings: Mapping[str, Any]) -> None:
        """Compute the outputs at their addresses."""


class HostEngine(LateEngine):
    """A graph of the bundle in ONNX Runtime over the addresses it is given.

    Args:
        graph: with inputs, outputs and `run`; by default the CPU graph of that name.
    """

    def __init__(self, device: HostDevice, name: str, bundle: Bundle, graph: Any = None) -> None:
        super().__init__(device, name, bundle)
        self._graph = cpu_executor(bundle, name) if graph is None else graph

    def run(self, bindings: Mapping[str, Any]) -> None:
        graph = self._graph

        def tensor(name: str, dtype: str) -> np.ndarray:
            address, shape = bindings[name]
            if dtype in PAIRED:
                dtype, shape = "uint8", (*shape[:-1], shape[-1] // 2)
            return at(address, dtype, int(np.prod(shape))).reshape(shape)

        inputs = {name: tensor(name, spec.dtype).copy() for name, spec in graph.inputs.items()}
        for name, result in graph.run(inputs).items():
            tensor(name, graph.outputs[name].dtype)[...] = result


class HostKernels(NullKernels):
    """The small kernels in numpy, after their description in the C header."""

    def combine(self, terms: Any, outputs: Any, sums: Any, elements: int, stream: int) -> None:
        def run() -> None:
            read = [at(address, dtype, elements).astype(np.float64) for address, dtype in terms]
            for output, row in zip(outputs, sums, strict=True):
                total = np.zeros(elements)
                for index, weight in row:
                    total += weight * read[index]
                at(output, "float32", elements)[:] = total.astype(np.float32)

        reads = [(a, a + elements * np.dtype(d).itemsize) for a, d in terms]
        writes = [(a, a + elements * 4) for a in outputs]
        call = Call("combine", "", stream, tuple(reads), tuple(writes))
        self._submit(call, run)

    def cast(self, source: Any, target: Any, rows: Any, stream: int) -> None:
        (read, read_type), (write, write_type) = source, target
        count, columns, pitch = rows

        def run() -> None:
            everything = at(read, read_type, (count - 1) * pitch + columns)
            picked = np.stack([everything[r * pitch : r * pitch + columns] for r in range(count)])
            at(write, write_type, count * columns)[:] = picked.astype(write_type).reshape(-1)

        size = np.dtype(read_type).itemsize
        reads = tuple(
            (read + r * pitch * size, read + (r * pitch + columns) * size) for r in range(count)
        )
        end = write + count * columns * np.dtype(write_type).itemsize
        self._submit(Call("cast", "", stream, reads, ((write, end),)), run)

    def _submit(self, call: Call, do: Callable[[], None]) -> None:
        device: Any = self._device
        device.submit(call, do)


def make_host_platform(device: HostDevice) -> Platform:
    """A platform whose results can be compared with the CPU's."""
    return Platform(
        device,
        HostKernels(device),
        lambda bundle: {name: HostEngine(device, name, bundle) for name in bundle.manifest.engines},
    )
