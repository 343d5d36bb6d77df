"""Plays recorded stages on a device: as one CUDA graph, or call by call."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress

from fastwan.runtime.device.memory import DeviceMemory
from fastwan.runtime.recording.machine import Device, DeviceEngine, DeviceError, Kernels
from fastwan.runtime.recording.recorder import COMPUTE, Stage
from fastwan.runtime.recording.tensors import Tensor

BEGIN = "begin"
"""Mark at which a play starts."""

STREAMS = 2


class Player:
    """Streams, events and graphs over memory whose addresses never change.

    Args:
        events: how many the stages refer to.

    Attributes:
        eager_reason: why there are no graphs; empty while there are.
    """

    def __init__(
        self,
        device: Device,
        kernels: Kernels,
        engines: Mapping[str, DeviceEngine],
        memory: DeviceMemory,
        events: int,
    ) -> None:
        self.device = device
        self.kernels = kernels
        self.engines = engines
        self.memory = memory
        self.streams = [device.new_stream() for _ in range(STREAMS)]
        self.eager_reason = ""
        self._events = [device.new_event() for _ in range(events)]
        self._graphs: dict[tuple[str, ...], int] = {}

    def address(self, tensor: Tensor) -> int:
        """Address of a tensor's first element."""
        return self.memory.address(tensor)

    def run(self, stages: Sequence[Stage]) -> None:
        """Launch the graph of some stages, captured when they are first run."""
        graph = self.graph(stages)
        if graph is None:
            self.enqueue(stages)
        else:
            self.device.launch(graph, self.streams[COMPUTE])

    def enqueue(self, stages: Sequence[Stage]) -> None:
        """Enqueue the calls of some stages, one by one."""
        self.device.mark(BEGIN, self.streams[COMPUTE])
        for stage in stages:
            for operation in stage.operations:
                stream = self.streams[operation.stream]
                for event in operation.waits:
                    self.device.wait(stream, self._events[event])
                operation.enqueue(self, stream)
                if operation.signal is not None:
                    self.device.record(self._events[operation.signal], stream)

    def graph(self, stages: Sequence[Stage]) -> int | None:
        """Graph of some stages; None once a capture has failed.

        A failure is told once; from then on the same calls are enqueued one by one.
        """
        key = tuple(stage.name for stage in stages)
        if key in self._graphs or self.eager_reason:
            return self._graphs.get(key)
        stream = self.streams[COMPUTE]
        try:
            self.device.begin_capture(stream)
            self.enqueue(stages)
            self._graphs[key] = self.device.end_capture(stream)
        except BaseException as error:
            self.device.abandon_capture(stream)
            if not isinstance(error, DeviceError) or error.kind == "sticky":
                raise
            self.eager_reason = str(error)
            warnings.warn(
                f"no CUDA graph, the same work is enqueued call by call: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
        return self._graphs.get(key)

    def synchronize(self) -> None:
        """Wait on the host for everything that was enqueued: every stage ends on this stream."""
        self.device.synchronize(self.streams[COMPUTE])

    def wait_for(self, word: Tensor) -> None:
        """Wait on the host until a pinned word was signalled, or all that was enqueued is done."""
        self.device.wait_for(self.address(word), self.streams[COMPUTE])

    def close(self) -> None:
        """Give the graphs back."""
        for graph in self._graphs.values():
            with suppress(DeviceError):
                self.device.destroy_graph(graph)
        self._graphs.clear()
