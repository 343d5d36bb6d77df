"""A GPU through NVIDIA's `cuda-bindings`: the runtime API, call by call."""

from __future__ import annotations

import ctypes
import time
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from fastwan.errors import EnvironmentLacks
from fastwan.install import how_to_install
from fastwan.runtime.model.executor import Array
from fastwan.runtime.recording.machine import DeviceError, DeviceInfo

MEMORY = frozenset({2})
"""cudaErrorMemoryAllocation."""

CAPTURE = frozenset(range(900, 911))
"""cudaErrorStreamCaptureUnsupported .. cudaErrorGraphExecUpdateFailure."""

STICKY = frozenset({4, 46, 214, 220, 226, 700, 702, 709, 710, *range(714, 720), 999})
"""After these every call of the process fails: unloading, device unavailable, ECC, NVLink,
illegal address, time-out, context destroyed, assert, hardware, launch failure, unknown."""


NOT_READY = 600
"""cudaErrorNotReady: a stream has work left. It is no error."""

WORD = 4
"""Bytes of a word that is signalled."""

POLL_SECONDS = 1e-4
"""From one look at such a word to the next."""


def error_kind(code: int) -> str:
    """Kind of a `DeviceError` by ``cudaError_t``."""
    for kind, codes in (("memory", MEMORY), ("capture", CAPTURE), ("sticky", STICKY)):
        if code in codes:
            return kind
    return "call"


def load_bindings() -> ModuleType:
    """``cuda.bindings.runtime``.

    Raises:
        EnvironmentLacks: the package is missing or does not load.
    """
    try:
        return import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise EnvironmentLacks(
            f"the package cuda-bindings is missing: {error}",
            where="CUDA",
            fix=how_to_install("gpu"),
        ) from error


class CudaDevice:
    """The first visible GPU.

    Args:
        runtime: module of the calls; by default `load_bindings`.

    Raises:
        EnvironmentLacks: no bindings, no driver or no GPU.
    """

    def __init__(self, runtime: Any = None) -> None:
        self._cuda: Any = load_bindings() if runtime is None else runtime
        self._marks: dict[str, int] = {}
        self._capturing = False
        try:
            self._call("cudaSetDevice", 0)
            self._call("cudaFree", 0)
            self.info = self._look()
            self._ones = self.allocate(WORD)
            self._call("cudaMemset", self._ones, 1, WORD)
        except DeviceError as error:
            raise EnvironmentLacks(
                f"no CUDA device can be used: {error}",
                where="CUDA",
                fix="check NVIDIA's driver and CUDA_VISIBLE_DEVICES",
            ) from error

    def _look(self) -> DeviceInfo:
        properties = self._call("cudaGetDeviceProperties", 0)
        version = int(self._call("cudaDriverGetVersion"))
        name = properties.name
        return DeviceInfo(
            name=name.decode() if isinstance(name, bytes) else str(name),
            compute_capability=10 * int(properties.major) + int(properties.minor),
            driver=f"{version // 1000}.{version % 1000 // 10}",
            total_bytes=int(self._call("cudaMemGetInfo")[1]),
            multiprocessors=int(properties.multiProcessorCount),
        )

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *results = getattr(self._cuda, name)(*arguments)
        self._check(name, status)
        return results[0] if len(results) == 1 else results

    def _check(self, name: str, status: Any) -> None:
        if int(status) != 0:
            code = int(status)
            # Reading the error clears it, unless it is one that stays.
            self._cuda.cudaGetLastError()
            raise DeviceError(f"{name}: {getattr(status, 'name', code)}", error_kind(code))

    def free_bytes(self) -> int:
        return int(self._call("cudaMemGetInfo")[0])

    def allocate(self, size: int) -> int:
        return int(self._call("cudaMalloc", size))

    def free(self, address: int) -> None:
        self._call("cudaFree", address)

    def allocate_host(self, size: int) -> tuple[int, Array]:
        address = int(self._call("cudaHostAlloc", size, self._cuda.cudaHostAllocDefault))
        return address, np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def free_host(self, address: int) -> None:
        self._call("cudaFreeHost", address)

    def new_stream(self) -> int:
        return int(self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking))

    def new_event(self) -> int:
        return int(self._call("cudaEventCreateWithFlags", self._cuda.cudaEventDisableTiming))

    def record(self, event: int, stream: int) -> None:
        self._call("cudaEventRecord", event, stream)

    def wait(self, stream: int, event: int) -> None:
        self._call("cudaStreamWaitEvent", stream, event, 0)

    def mark(self, name: str, stream: int) -> None:
        if name not in self._marks:
            flags = self._cuda.cudaEventDefault
            self._marks[name] = int(self._call("cudaEventCreateWithFlags", flags))
        if self._capturing:
            # Inside a graph only an external event is recorded at every launch.
            flags = self._cuda.cudaEventRecordExternal
            self._call("cudaEventRecordWithFlags", self._marks[name], stream, flags)
        else:
            self._call("cudaEventRecord", self._marks[name], stream)

    def milliseconds(self, begin: str, end: str) -> float | None:
        if begin not in self._marks or end not in self._marks:
            return None
        return float(self._call("cudaEventElapsedTime", self._marks[begin], self._marks[end]))

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDefault
        self._call("cudaMemcpyAsync", target, source, size, kind, stream)

    def zero(self, address: int, size: int, stream: int) -> None:
        self._call("cudaMemsetAsync", address, 0, size, stream)

    def signal(self, address: int, stream: int) -> None:
        # Behind what the stream copied before, and as that by a copy engine: it waits for no
        # multiprocessor, and any driver can capture it.
        self.copy(address, self._ones, WORD, stream)

    def wait_for(self, address: int, stream: int) -> None:
        word = ctypes.c_uint32.from_address(address)
        while not word.value:
            if self._idle(stream):
                return
            time.sleep(POLL_SECONDS)

    def _idle(self, stream: int) -> bool:
        (status,) = self._cuda.cudaStreamQuery(stream)
        if int(status) == NOT_READY:
            return False
        self._check("cudaStreamQuery", status)
        return True

    def host_access(self, **_: object) -> None:
        """CUDA orders its own accesses; nothing has to be told."""

    def synchronize(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def begin_capture(self, stream: int) -> None:
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)
        self._capturing = True

    def end_capture(self, stream: int) -> int:
        self._capturing = False
        try:
            graph = self._call("cudaStreamEndCapture", stream)
            try:
                instance = int(self._call("cudaGraphInstantiate", graph, 0))
            finally:
                self._call("cudaGraphDestroy", graph)
            # Else the first launch would upload it.
            self._call("cudaGraphUpload", instance, stream)
        except DeviceError as error:
            kind = "sticky" if error.kind == "sticky" else "capture"
            raise DeviceError(str(error), kind) from error
        return instance

    def abandon_capture(self, stream: int) -> None:
        self._capturing = False
        idle = self._cuda.cudaStreamCaptureStatus.cudaStreamCaptureStatusNone
        status, state = self._cuda.cudaStreamIsCapturing(stream)
        if int(status) != 0 or state != idle:
            status, graph = self._cuda.cudaStreamEndCapture(stream)
            if int(status) == 0:
                self._cuda.cudaGraphDestroy(graph)
        self._cuda.cudaGetLastError()

    def launch(self, graph: int, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self._call("cudaGraphExecDestroy", graph)
