"""How much memory a video needs and where each buffer lies, known before anything is allocated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from fastwan.bundle import Bundle
from fastwan.runtime.model.samplers import schedule_of
from fastwan.runtime.recording.operations import LaunchRegion, RunEngine
from fastwan.runtime.recording.record import Recording, record
from fastwan.runtime.recording.recorder import SCRATCH
from fastwan.runtime.recording.tensors import Buffer
from fastwan.schema import Count, Record

ALIGNMENT = 512
"""Of every buffer: TensorRT wants 256 bytes, and a cache line is never shared by two."""


class DeviceBytes(Record):
    """Memory of a video by use, in bytes, beside the CUDA context."""

    weights: Count
    """Of the engines, by the size of their files; weights that they are given are fixed."""
    scratch: Count
    """The one buffer that every engine and region uses while it runs."""
    arena: Count
    """Tensors that share memory where their lifetimes allow."""
    fixed: Count
    """Constants, weights that engines are given, tables of the schedule, keys and values of the
    prompt."""
    total: Count
    """Device memory in all."""
    pinned_host: Count
    """Host memory; no part of the total."""


@dataclass(frozen=True)
class Lifetime:
    """First and last operation that touches a buffer, counted over all stages."""

    first: int
    last: int


@dataclass(frozen=True)
class MemoryPlan:
    """Memory of a video, in bytes.

    Attributes:
        weights: of the engines, by the size of their files.
        scratch: the one buffer that every engine and region uses while it runs.
        workspace: the part of `scratch` that the largest region wants.
        arena: tensors that share memory where their lifetimes allow.
        fixed: constants, weights that engines are given, tables of the schedule, and keys and
            values of the prompt.
        pinned: host memory.
        offsets: place of each arena buffer in the arena.
        unshared: what the arena's tensors would take side by side.
    """

    weights: int
    scratch: int
    workspace: int
    arena: int
    fixed: int
    pinned: int
    unshared: int
    offsets: Mapping[Buffer, int]
    fixed_buffers: tuple[Buffer, ...]
    host_buffers: tuple[Buffer, ...]

    @property
    def total(self) -> int:
        """Device memory beside the CUDA context."""
        return self.weights + self.scratch + self.arena + self.fixed

    @property
    def device_bytes(self) -> DeviceBytes:
        """Sizes by use, for a report."""
        return DeviceBytes(
            weights=self.weights,
            scratch=self.scratch,
            arena=self.arena,
            fixed=self.fixed,
            total=self.total,
            pinned_host=self.pinned,
        )


def lifetimes(recording: Recording) -> tuple[dict[Buffer, Lifetime], set[Buffer]]:
    """Lifetime of every buffer in the recorded order, and the buffers of more than one stream."""
    found: dict[Buffer, Lifetime] = {}
    streams: dict[Buffer, set[int]] = {}
    operations = recording.operations
    for number, operation in enumerate(operations):
        for tensor in (*operation.reads, *operation.writes):
            known = found.get(tensor.buffer, Lifetime(number, number))
            found[tensor.buffer] = Lifetime(known.first, number)
            streams.setdefault(tensor.buffer, set()).add(operation.stream)
    if recording.frames is None:
        # The host reads the last latents after the last operation.
        last = recording.states[-1].buffer
        found[last] = Lifetime(found[last].first, len(operations))
    return found, {buffer for buffer, used in streams.items() if len(used) > 1}


def plan(recording: Recording) -> MemoryPlan:
    """Lay out the memory of a recorded video.

    Buffers of the arena share memory when one is last touched before the other is first touched,
    both on one stream. A buffer that two streams touch has its place to itself: nothing but the
    events that were recorded would order another one behind it.
    """
    lives, crossing = lifetimes(recording)
    lives.pop(SCRATCH, None)
    device = {buffer: life for buffer, life in lives.items() if buffer.space == "device"}
    fixed = tuple(buffer for buffer in device if buffer.fixed)
    last = max((life.last for life in device.values()), default=0)
    shared = {
        buffer: Lifetime(0, last) if buffer in crossing else life
        for buffer, life in device.items()
        if not buffer.fixed
    }
    offsets = _place(shared)
    host = dict.fromkeys(buffer for buffer in lives if buffer.space == "host")
    host[recording.latents.buffer] = None
    scratch, workspace = _scratch(recording)
    return MemoryPlan(
        weights=_weights(recording),
        scratch=scratch,
        workspace=workspace,
        arena=max((offset + aligned(b.size) for b, offset in offsets.items()), default=0),
        fixed=sum(aligned(buffer.size) for buffer in fixed),
        pinned=sum(aligned(buffer.size) for buffer in host),
        unshared=sum(aligned(buffer.size) for buffer in shared),
        offsets=offsets,
        fixed_buffers=fixed,
        host_buffers=tuple(host),
    )


def aligned(size: int) -> int:
    """`size` rounded up to `ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def bundle_memory(bundle: Bundle, sampler: str | None = None) -> DeviceBytes:
    """Memory of a bundle's video, from its manifest alone.

    Raises:
        BadInput: a bundle that no video can be made with.
    """
    recording = record(bundle.manifest, schedule_of(bundle.manifest.sampler_spec(sampler)))
    return plan(recording).device_bytes


def _weights(recording: Recording) -> int:
    """Bytes of the plans, and of the fallbacks that are played."""
    manifest = recording.manifest
    played = {op.engine for op in recording.operations if isinstance(op, RunEngine)}
    fallbacks = (each for name, each in manifest.fallback_engines.items() if name in played)
    engines = (*manifest.engines.values(), *fallbacks)
    return sum({each.file: manifest.engine_record(each).bytes for each in engines}.values())


def _scratch(recording: Recording) -> tuple[int, int]:
    operations = recording.operations
    engines = [op.scratch.size for op in operations if isinstance(op, RunEngine)]
    regions = [op.workspace.size for op in operations if isinstance(op, LaunchRegion)]
    return max([*engines, *regions], default=0), max(regions, default=0)


def _place(lives: Mapping[Buffer, Lifetime]) -> dict[Buffer, int]:
    """Lowest free place for each buffer, largest first."""
    order = sorted(lives, key=lambda b: (-b.size, lives[b].first))
    first, last = (np.array([getattr(lives[b], end) for b in order]) for end in ("first", "last"))
    begins = np.zeros(len(order), np.int64)
    ends = np.zeros(len(order), np.int64)
    for number, buffer in enumerate(order):
        placed = slice(number)
        together = (first[placed] <= last[number]) & (first[number] <= last[placed])
        low, high = begins[placed][together], ends[placed][together]
        by_place = np.lexsort((high, low))
        taken = zip(low[by_place].tolist(), high[by_place].tolist(), strict=True)
        begins[number] = _first_gap(taken, aligned(buffer.size))
        ends[number] = begins[number] + aligned(buffer.size)
    return dict(zip(order, begins.tolist(), strict=True))


def _first_gap(taken: Iterable[tuple[int, int]], size: int) -> int:
    begin = 0
    for low, high in taken:
        if low - begin >= size:
            break
        begin = max(begin, high)
    return begin
