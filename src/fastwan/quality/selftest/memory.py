"""Device memory for one stage, by the device protocol alone: no GPU build of torch is needed."""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress

import ml_dtypes
import numpy as np
import torch

from fastwan.runtime.model.executor import Array
from fastwan.runtime.recording.machine import Device, DeviceError

GARBAGE = 0xA5
"""Fills new memory, so that a read of what nobody wrote shows."""

_NOT_NUMPYS = (
    (torch.bfloat16, torch.int16, ml_dtypes.bfloat16, np.int16),
    (torch.float8_e4m3fn, torch.uint8, ml_dtypes.float8_e4m3fn, np.uint8),
)
"""Formats that go between torch and numpy as integers: each with its integer, in both."""


class Scratch(AbstractContextManager["Scratch"]):
    """Memory on a device that is given back at the end of a stage.

    Attributes:
        stream: what the stage runs on.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._owned: list[int] = []
        self.stream = device.new_stream()

    def __exit__(self, *_: object) -> None:
        for address in self._owned:
            with suppress(DeviceError):
                self._device.free(address)
        self._owned.clear()

    def space(self, size: int) -> int:
        """Address of `size` bytes of garbage."""
        return self.put(np.full(max(size, 1), GARBAGE, np.uint8))

    def put(self, values: Array) -> int:
        """Address of a copy of `values`."""
        flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        target = self._device.allocate(flat.nbytes)
        self._owned.append(target)
        source, array = self._device.allocate_host(flat.nbytes)
        try:
            array[:] = flat
            self._device.copy(target, source, flat.nbytes, self.stream)
            self._device.synchronize(self.stream)
        finally:
            self._device.free_host(source)
        return target

    def get(self, address: int, shape: tuple[int, ...], dtype: str) -> Array:
        """What lies at an address once everything on the stream is done."""
        kind = np.dtype(dtype)
        size = int(np.prod(shape)) * kind.itemsize
        target, array = self._device.allocate_host(size)
        try:
            self._device.copy(target, address, size, self.stream)
            self._device.synchronize(self.stream)
            return array.copy().view(kind).reshape(shape)
        finally:
            self._device.free_host(target)


def to_numpy(tensor: torch.Tensor) -> Array:
    """A CPU tensor as an array over the same memory, bf16 and e4m3 included."""
    tensor = tensor.contiguous()
    for dtype, bits, kind, _ in _NOT_NUMPYS:
        if tensor.dtype == dtype:
            return np.asarray(tensor.view(bits).numpy().view(kind))
    return np.asarray(tensor.numpy())


def to_torch(array: Array) -> torch.Tensor:
    """The inverse of `to_numpy`, of a copy."""
    array = np.array(array)
    for dtype, _, kind, bits in _NOT_NUMPYS:
        if array.dtype == kind:
            return torch.from_numpy(array.view(bits)).view(dtype)
    return torch.from_numpy(array)
