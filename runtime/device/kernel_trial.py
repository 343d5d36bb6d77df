"""The attention's kernels on a GPU, each in the bundle's own size, against sampled rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress

import ml_dtypes
import numpy as np

from fastwan.errors import BadInput, EnvironmentLacks
from fastwan.plugins.regions import RegionOp
from fastwan.plugins.regions.attention import HEAD_DIM
from fastwan.plugins.regions.sage_attention3 import SageAttention3, SageLayout
from fastwan.plugins.sampled_attention import Packed, attend
from fastwan.runtime.device.kernel_choice import Candidate
from fastwan.runtime.model.executor import Array
from fastwan.runtime.recording.machine import Device, DeviceError, Kernels

ROUNDS, CALLS = 3, 3
"""The time of a kernel is the least of so many rounds of so many calls."""
_PATTERN_ROWS = 1000
"""Rows of made-up inputs, which are repeated: no multiple of a tile, so that no two tiles of 128
are the same."""
_TILE = 128
_ENDLESS = 1e9
"""Stands for a difference that is no number."""
_BEGIN, _END = "kernel trial begins", "kernel trial ends"


class AttentionTrial:
    """Runs kernels of the attention, and gives back what it allocated.

    Args:
        layout: where a region's packed operands lie in its workspace.
        apart: see `Packed`.
    """

    def __init__(
        self,
        device: Device,
        kernels: Kernels,
        layout: Callable[[SageAttention3], SageLayout],
        apart: int,
    ) -> None:
        self._device = device
        self._kernels = kernels
        self._layout = layout
        self._apart = apart

    def __call__(self, region: RegionOp, kernels: Mapping[str, RegionOp]) -> tuple[Candidate, ...]:
        """What each kernel makes, and how long it takes.

        Raises:
            BadInput: a region of another kind.
            DeviceError: too little memory, or the device is lost.
        """
        if not isinstance(region, SageAttention3):
            raise BadInput(f"no trial of {region}", where="plugin library")
        memory = _Memory(self._device)
        try:
            run = _Run(self._device, self._kernels, memory, region)
            return tuple(self._candidate(run, region, name, each) for name, each in kernels.items())
        finally:
            memory.release()

    def _candidate(
        self, run: _Run, region: SageAttention3, name: str, kernel: RegionOp
    ) -> Candidate:
        try:
            out, workspace = run.once(kernel)
            packed = Packed(workspace, self._layout(region), self._apart)
            apart = difference(region, packed, out, self._parts(kernel))
            times = [run.milliseconds(kernel) for _ in range(ROUNDS)]
        except (DeviceError, EnvironmentLacks) as error:
            if isinstance(error, DeviceError) and error.kind == "sticky":
                raise
            return Candidate(kernel=name, relative_l2=None, milliseconds=None, fault=str(error))
        known = [each for each in times if each is not None]
        return Candidate(kernel=name, relative_l2=apart, milliseconds=min(known) if known else None)

    def _parts(self, kernel: RegionOp) -> Callable[[int, int], int]:
        assert isinstance(kernel, SageAttention3)
        processors = self._device.info.multiprocessors
        return lambda head, tile: kernel.parts_of(head, tile, processors)


def difference(
    region: SageAttention3, packed: Packed, out: Array, parts: Callable[[int, int], int]
) -> float:
    """Largest relative L2 of a tile: the first of the first head, the last of the last.

    Args:
        out: [B, L, H, 128] fp32. Where rows behind the tokens are not 0 the answer is 1.
        parts: that the keys of a head's tile are divided into.
    """
    tokens, heads = region.attributes.num_tokens, region.attributes.num_heads
    if np.any(out[:, tokens:]):
        return 1.0
    differences = []
    for head, tile in ((0, 0), (region.batch * heads - 1, (tokens - 1) // _TILE)):
        rows = slice(_TILE * tile, min(tokens, _TILE * (tile + 1)))
        found = out[head // heads, rows, head % heads]
        wanted = attend(region, packed, head, tile, parts(head, tile))[: len(found)]
        norm = float(np.linalg.norm(wanted))
        apart = float(np.linalg.norm(found - wanted))
        differences.append(apart / norm if norm else apart)
    largest = float(np.max(differences))  # NaN where one is
    return largest if math.isfinite(largest) else _ENDLESS


class _Run:
    """A region's tensors on the device."""

    def __init__(
        self, device: Device, kernels: Kernels, memory: _Memory, region: SageAttention3
    ) -> None:
        self._device, self._kernels, self._memory, self._region = device, kernels, memory, region
        self._stream = device.new_stream()
        self._shape = (region.batch, region.length, region.attributes.num_heads, HEAD_DIM)
        self._inputs = [memory.put(values, rows, self._stream) for values, rows in _made_up(region)]
        self._out = memory.space(2 * math.prod(self._shape))
        self._workspace = memory.space(region.workspace_bytes)

    def once(self, kernel: RegionOp) -> tuple[Array, Array]:
        """Output in fp32, and the workspace's bytes."""
        size, workspace_bytes = 2 * math.prod(self._shape), self._region.workspace_bytes
        self._device.zero(self._workspace, workspace_bytes, self._stream)
        self._enqueue(kernel)
        raw = self._memory.get(self._out, size, self._stream)
        out = raw.view(ml_dtypes.bfloat16).reshape(self._shape).astype(np.float32)
        return out, self._memory.get(self._workspace, workspace_bytes, self._stream)

    def milliseconds(self, kernel: RegionOp) -> float | None:
        """Of one call; None where the device has no clock."""
        self._device.mark(_BEGIN, self._stream)
        for _ in range(CALLS):
            self._enqueue(kernel)
        self._device.mark(_END, self._stream)
        self._device.synchronize(self._stream)
        passed = self._device.milliseconds(_BEGIN, _END)
        return None if passed is None else passed / CALLS

    def _enqueue(self, kernel: RegionOp) -> None:
        self._kernels.region(
            kernel,
            self._inputs,
            [self._out],
            self._workspace,
            self._region.workspace_bytes,
            self._stream,
        )


def _made_up(region: SageAttention3) -> list[tuple[Array, int]]:
    """Inputs of a node: a pattern, and how many rows to repeat it to."""
    random = np.random.default_rng(0)
    channels, rows = region.channels, region.batch * region.length

    def normal(*shape: int, around: float = 0.0, by: float = 1.0) -> Array:
        return np.asarray(random.normal(around, by, shape).astype(ml_dtypes.bfloat16))

    pattern = min(rows, _PATTERN_ROWS)
    # Positions are angles of their own, so that no two rows of q and of k are the same.
    angles = random.uniform(0, 2 * math.pi, (region.length, HEAD_DIM // 2)).astype(np.float32)
    return [
        (normal(pattern, 3 * channels), rows),
        (np.ones(3, np.float32), 1),
        (normal(1, 3 * channels, by=0.1), 1),
        (normal(1, channels, around=1.5, by=0.2), 1),
        (normal(1, channels, around=1.5, by=0.2), 1),
        (np.cos(angles), region.length),
        (np.sin(angles), region.length),
    ]


class _Memory:
    def __init__(self, device: Device) -> None:
        self._device = device
        self._owned: list[int] = []

    def space(self, size: int) -> int:
        self._owned.append(self._device.allocate(size))
        return self._owned[-1]

    def put(self, values: Array, rows: int, stream: int) -> int:
        """Address of `rows` rows, which repeat those of `values`."""
        flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        row = flat.nbytes // len(values) if rows > 1 else flat.nbytes
        target = self.space(row * rows)
        source, array = self._device.allocate_host(flat.nbytes)
        try:
            array[:] = flat
            for at in range(0, row * rows, flat.nbytes):
                size = min(flat.nbytes, row * rows - at)
                self._device.copy(target + at, source, size, stream)
            self._device.synchronize(stream)
        finally:
            self._device.free_host(source)
        return target

    def get(self, address: int, size: int, stream: int) -> Array:
        target, array = self._device.allocate_host(size)
        try:
            self._device.copy(target, address, size, stream)
            self._device.synchronize(stream)
            return array.copy()
        finally:
            self._device.free_host(target)

    def release(self) -> None:
        for address in self._owned:
            with suppress(DeviceError):
                self._device.free(address)
        self._owned.clear()
