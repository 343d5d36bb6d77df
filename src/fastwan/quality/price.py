"""The price of a recorded video: each operation that is played, from the first copy to the last.

The recording says what runs and how often, the builder's layer records what is inside an engine.
`enqueues` and `price` are the only count of launches and kernels; `inspect` and `bench` report it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from fastwan.engines.layers import LayerRecord
from fastwan.errors import BadInput
from fastwan.manifest import Manifest
from fastwan.plugins.regions import RegionOp
from fastwan.quality.cost import (
    USUAL_TEXT_LENGTH,
    Cost,
    kernel_cost,
    memory_cost,
    region_op_cost,
    total,
)
from fastwan.quality.gpus import GpuRates
from fastwan.runtime.device.null import ENQUEUES
from fastwan.runtime.recording.operations import (
    Barrier,
    Cast,
    Combine,
    Copy,
    LaunchRegion,
    Mark,
    Operation,
    RunEngine,
    Signal,
    Zero,
)
from fastwan.runtime.recording.record import Recording
from fastwan.runtime.recording.recorder import Stage
from fastwan.runtime.recording.tensors import Tensor

Layers = Mapping[str, Sequence[LayerRecord]]
"""Layer records by engine, of every optimization profile."""

_KINDS: Mapping[type[Operation], str] = {
    RunEngine: "engine", LaunchRegion: "region", Combine: "combine", Cast: "cast", Copy: "copy",
    Zero: "zero",
}  # fmt: skip
"""Operations that put work on a stream, by the names of `fastwan.runtime.device.null.ENQUEUES`."""
_ONLY_ORDER = (Barrier, Mark, Signal)


@dataclass(frozen=True)
class StageCost:
    """Predicted cost of a stage, and what it enqueues by kind."""

    cost: Cost
    enqueues: Counter[str]


@dataclass(frozen=True)
class VideoCost:
    """Predicted cost of a video.

    Attributes:
        stages: by stage of the recording, in order. ``tables`` is computed when a bundle is
            loaded; ``text`` and ``text_kv`` run once a prompt; the rest is the video's one launch.
        steps: names of the denoising steps.
        launch: names of the stages that the one launch covers.
    """

    stages: Mapping[str, StageCost]
    steps: tuple[str, ...]
    launch: tuple[str, ...]

    def of(self, names: Iterable[str]) -> Cost:
        """Some stages together."""
        return total(self.stages[name].cost for name in names)

    @property
    def video(self) -> Cost:
        """A video of a new prompt: every stage but what loading computes."""
        return self.of(name for name in self.stages if name != "tables")


def price(recording: Recording, layers: Layers, gpu: GpuRates) -> VideoCost:
    """Price every operation of a recorded video of a prompt of the usual length.

    Args:
        layers: records by engine, from ``layers.json``.

    Raises:
        BadInput: no records of an engine, or one of an unknown dtype.
    """
    launch = tuple(stage.name for stage in recording.video)
    manifest = recording.manifest
    regions: dict[RegionOp, Cost] = {}
    runs: dict[tuple[int, int, int], Cost] = {}

    def cost_of(operation: Operation) -> Cost:
        """Steps repeat themselves, and so do blocks, whose engines may share their records."""
        match operation:
            case RunEngine():
                records = id(layers.get(operation.engine))
                run = records, operation.profile, _size(operation, manifest)
                if run not in runs:
                    runs[run] = operation_cost(operation, manifest, layers, gpu)
                return runs[run]
            case LaunchRegion():
                if operation.region not in regions:
                    regions[operation.region] = operation_cost(operation, manifest, layers, gpu)
                return regions[operation.region]
        return operation_cost(operation, manifest, layers, gpu)

    return VideoCost(
        {
            stage.name: StageCost(_stage_cost(stage, cost_of), enqueues([stage]))
            for stage in usual_stages(recording)
        },
        steps=launch[: len(recording.schedule.steps)],
        launch=launch,
    )


def usual_stages(recording: Recording) -> list[Stage]:
    """Stages of a recording with a prompt of the usual length in place of the longest one."""
    stages: list[Stage] = []
    for stage in recording.stages:
        if recording.text is not None and stage.name == "text":
            stages += recording.text.stages(min(USUAL_TEXT_LENGTH, recording.text.longest))
        else:
            stages.append(stage)
    return stages


def enqueues(stages: Iterable[Stage]) -> Counter[str]:
    """Operations that put work on a stream, by kind; every kind is named."""
    found = Counter(
        _KINDS[type(operation)]
        for stage in stages
        for operation in stage.operations
        if not isinstance(operation, _ONLY_ORDER)
    )
    return Counter({kind: found[kind] for kind in ENQUEUES})


def _stage_cost(stage: Stage, cost_of: Callable[[Operation], Cost]) -> Cost:
    """Sum over a stage; its time is that of its longest stream, behind the recorded waits."""
    costs = [cost_of(each) for each in stage.operations]
    summed = total(costs)
    if math.isnan(summed.seconds):
        return summed
    ends: dict[int, float] = {}
    events: dict[int, float] = {}
    for operation, cost in zip(stage.operations, costs, strict=True):
        begin = max([ends.get(operation.stream, 0.0), *(events[e] for e in operation.waits)])
        ends[operation.stream] = begin + cost.seconds
        if operation.signal is not None:
            events[operation.signal] = ends[operation.stream]
    return replace(summed, seconds=max(ends.values(), default=0.0))


def operation_cost(operation: Operation, manifest: Manifest, layers: Layers, gpu: GpuRates) -> Cost:
    """Cost of one operation; a barrier, a mark and a signal cost nothing.

    Raises:
        BadInput: no records of an engine, or one of an unknown dtype.
        TypeError: a kind of operation that has no price.
    """
    match operation:
        case RunEngine():
            return _run_cost(operation, manifest, layers, gpu)
        case LaunchRegion():
            return region_op_cost(operation.region, gpu)
        case Combine() | Cast():
            return memory_cost(sum(map(_bytes, (*operation.reads, *operation.writes))), gpu)
        case Copy():
            return _copy_cost(operation, gpu)
        case Zero():
            return replace(memory_cost(_bytes(operation.target), gpu), kernels=0)
        case Barrier() | Mark() | Signal():
            return Cost()
    raise TypeError(f"no price is known for {type(operation).__name__}")


def _run_cost(run: RunEngine, manifest: Manifest, layers: Layers, gpu: GpuRates) -> Cost:
    if run.engine not in layers:
        raise BadInput(f"no layer records of engine {run.engine}", where="layers.json")
    size = _size(run, manifest)
    records = layers[run.engine]
    return total(kernel_cost(each, gpu, size) for each in records if each.profile == run.profile)


def _size(run: RunEngine, manifest: Manifest) -> int:
    """The largest of the sizes that an engine's named axes have in a run, 1 without any."""
    engine = manifest.engines[run.engine]
    if not engine.profiles:
        return 1
    named = (
        run.inputs[spec.name].shape[axis]
        for spec in engine.inputs
        for axis, size in enumerate(spec.shape)
        if isinstance(size, str)
    )
    return max(named, default=1)


def _copy_cost(copy: Copy, gpu: GpuRates) -> Cost:
    """A copy is no kernel; one from or to the host takes as long as the bus does."""
    size = _bytes(copy.source)
    on_device = sum(each.buffer.space == "device" for each in (copy.source, copy.target))
    cost = replace(memory_cost(on_device * size, gpu), kernels=0)
    if on_device == 2:
        return cost
    return replace(cost, seconds=size / gpu.host_bytes_per_second + gpu.launch_seconds)


def _bytes(tensor: Tensor) -> int:
    return tensor.packed or tensor.elements * tensor.itemsize
