"""The memory of a plan, allocated once, and the host's way in and out of it."""

from __future__ import annotations

from contextlib import suppress
from itertools import chain

import numpy as np

from fastwan.bundle import Bundle
from fastwan.errors import BadInput, EnvironmentLacks
from fastwan.runtime.device.constants import initializers
from fastwan.runtime.model.executor import Array
from fastwan.runtime.recording.machine import Device, DeviceError
from fastwan.runtime.recording.memory_plan import MemoryPlan, aligned
from fastwan.runtime.recording.recorder import SCRATCH
from fastwan.runtime.recording.tensors import Buffer, Tensor


class DeviceMemory:
    """Allocates every buffer of a plan.

    Raises:
        EnvironmentLacks: it does not fit; says what is needed and what is there.
        DeviceError: another failure of the device.
    """

    def __init__(self, device: Device, plan: MemoryPlan) -> None:
        self._device = device
        self._plan = plan
        self._addresses: dict[Buffer, int] = {}
        self._arrays: dict[Buffer, Array] = {}
        self._owned: list[int] = []
        self._pinned: list[int] = []
        try:
            self._allocate()
        except DeviceError as error:
            self.release()
            if error.kind == "memory":
                raise too_large(device, plan, str(error)) from error
            raise
        except BaseException:
            self.release()
            raise

    def _allocate(self) -> None:
        plan = self._plan
        arena, scratch, fixed = map(self._own, (plan.arena, plan.scratch, plan.fixed))
        self._addresses[SCRATCH] = scratch
        self._addresses |= {buffer: arena + offset for buffer, offset in plan.offsets.items()}
        for buffer in plan.fixed_buffers:
            self._addresses[buffer] = fixed
            fixed += aligned(buffer.size)
        for buffer in plan.host_buffers:
            address, array = self._device.allocate_host(buffer.size)
            self._pinned.append(address)
            self._addresses[buffer], self._arrays[buffer] = address, array

    def _own(self, size: int) -> int:
        address = self._device.allocate(max(size, 1))
        self._owned.append(address)
        return address

    def release(self) -> None:
        """Give everything back, as far as the device still takes it."""
        for free, addresses in (
            (self._device.free, self._owned),
            (self._device.free_host, self._pinned),
        ):
            for address in addresses:
                with suppress(DeviceError):
                    free(address)
            addresses.clear()

    def address(self, tensor: Tensor) -> int:
        """Address of a tensor's first element."""
        return self._addresses[tensor.buffer] + tensor.offset

    def upload(self, bundle: Bundle, stream: int) -> None:
        """Write the constants.

        Raises:
            BadInput, VerificationFailed: see `fastwan.runtime.device.constants.initializers`.
        """
        fixed = self._plan.fixed_buffers
        named = {b.content: b for b in fixed if isinstance(b.content, str)}
        written = [(b, b.content) for b in fixed if isinstance(b.content, bytes)]
        contents = ((named[name], data) for name, data in initializers(bundle, list(named)))
        largest = max([b.size for b in fixed if b.content is not None], default=0)
        address, array = self._device.allocate_host(max(largest, 1))
        try:
            for buffer, data in chain(written, contents):
                if len(data) != buffer.size:
                    raise BadInput(
                        f"{buffer.name} is not of {buffer.size} bytes", where="onnx/dit.onnx"
                    )
                array[: buffer.size] = np.frombuffer(data, np.uint8)
                self._device.host_access(writes=[(address, address + buffer.size)])
                self._device.copy(self._addresses[buffer], address, buffer.size, stream)
                self._device.synchronize(stream)
        finally:
            self._device.free_host(address)

    def download(self, tensor: Tensor, stream: int) -> Array:
        """Bytes of a device tensor once a stream is done, flat uint8."""
        size = tensor.size
        address, array = self._device.allocate_host(size)
        try:
            self._device.copy(address, self.address(tensor), size, stream)
            self._device.synchronize(stream)
            self._device.host_access(reads=[(address, address + size)])
            return array.copy()
        finally:
            self._device.free_host(address)

    def write(self, tensor: Tensor, values: Array) -> None:
        """Write a pinned tensor, rounded to its dtype.

        Raises:
            BadInput: another shape.
        """
        if values.shape != tensor.shape:
            raise BadInput(
                f"{tensor.buffer.name} has shape {list(values.shape)}, not {list(tensor.shape)}",
                where="runtime",
            )
        packed = np.ascontiguousarray(values, np.dtype(tensor.dtype))
        self._bytes(tensor)[:] = packed.reshape(-1).view(np.uint8)
        self._device.host_access(writes=[self._range(tensor)])

    def clear(self, tensor: Tensor) -> None:
        """Zero a pinned tensor."""
        self._bytes(tensor)[:] = 0
        self._device.host_access(writes=[self._range(tensor)])

    def view(self, tensor: Tensor) -> Array:
        """A pinned tensor as an array over the same memory."""
        self._device.host_access(reads=[self._range(tensor)])
        return self._bytes(tensor).view(np.dtype(tensor.dtype)).reshape(tensor.shape)

    def _bytes(self, tensor: Tensor) -> Array:
        begin, end = tensor.span
        return self._arrays[tensor.buffer][begin:end]

    def _range(self, tensor: Tensor) -> tuple[int, int]:
        address = self.address(tensor)
        return address, address + tensor.size


def check_fit(device: Device, plan: MemoryPlan) -> None:
    """Compare a plan with what is free, before anything is allocated.

    Raises:
        EnvironmentLacks: it is too large.
    """
    free, total = device.free_bytes(), device.info.total_bytes
    if plan.total > free:
        raise too_large(device, plan, f"{free / 1e9:.2f} of {total / 1e9:.2f} GB are free")


def too_large(device: Device, plan: MemoryPlan, has: str) -> EnvironmentLacks:
    """The error that says what a plan needs, by use, and what there is."""
    parts = ", ".join(
        f"{name} {getattr(plan, name) / 1e9:.2f}"
        for name in ("weights", "scratch", "arena", "fixed")
    )
    return EnvironmentLacks(
        f"the bundle needs {plan.total / 1e9:.2f} GB of device memory ({parts}): {has}",
        where=device.info.name,
        fix="close other programs on the GPU, or build a smaller video",
    )
