"""What an engine's kernels cost: bytes, operations, and the time that follows from both.

Every time here is predicted: a kernel takes the longer of its memory traffic at full bandwidth and
its arithmetic at the rate of the table, plus a launch. Nothing of it was run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fastwan.bundle import Cadence, Engine, Manifest, Region
from fastwan.engines.layers import LayerRecord, TensorRecord
from fastwan.plugins.regions import RegionOp, region_op
from fastwan.quality.gpus import GpuRates

STEPS = 3
USUAL_TEXT_LENGTH = 128
"""Tokens of the prompt that is priced: a few sentences."""


@dataclass(frozen=True)
class Cost:
    """Sum over kernels.

    Attributes:
        bytes_moved: everything read and written, weights included.
        memory_bound_bytes: the part of kernels without matrix arithmetic.
        flops: operations of GEMMs, attentions and convolutions, two a multiply-add.
        seconds: predicted time; None where the GPU is not in the table.
        floor_seconds: predicted time of the matrix arithmetic alone, nothing else between.
    """

    kernels: int = 0
    bytes_moved: int = 0
    memory_bound_bytes: int = 0
    flops: int = 0
    seconds: float | None = 0.0
    floor_seconds: float | None = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.kernels + other.kernels,
            self.bytes_moved + other.bytes_moved,
            self.memory_bound_bytes + other.memory_bound_bytes,
            self.flops + other.flops,
            _add(self.seconds, other.seconds),
            _add(self.floor_seconds, other.floor_seconds),
        )

    def __mul__(self, times: int) -> Cost:
        return Cost(
            self.kernels * times,
            self.bytes_moved * times,
            self.memory_bound_bytes * times,
            self.flops * times,
            None if self.seconds is None else self.seconds * times,
            None if self.floor_seconds is None else self.floor_seconds * times,
        )


def _add(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left + right


def total(costs: Iterable[Cost]) -> Cost:
    """Sum of costs."""
    return sum(costs, Cost())


def flops(record: LayerRecord, dynamic: int = 1) -> int:
    """Operations of a kernel's matrix arithmetic, 0 for one without.

    GEMM: 2 M N K; attention: 4 H L Lk D (both products); convolution: 2 outputs x filter size.
    """
    operands = record.operands
    if record.kind not in ("gemm", "attention", "convolution") or len(operands) < 2:
        return 0
    if record.kind == "gemm":
        # Of the operands and not of the outputs: one GEMM may write its result twice.
        left, right = (_sizes(tensor, dynamic) for tensor in operands)
        batch = max(math.prod(left[:-2]), math.prod(right[:-2]))
        return 2 * batch * left[-2] * left[-1] * right[-1]
    if record.kind == "convolution":
        largest = max(tensor.elements(dynamic) for tensor in record.outputs)
        return 2 * largest * math.prod(operands[1].shape[1:])
    # Inputs are q [H, L, D], k [H, D, Lk], v [H, Lk, D]; the output is as large as q.
    written = sum(tensor.elements(dynamic) for tensor in record.outputs)
    keys = record.inputs[-1].shape[-2]
    return 4 * written * (dynamic if keys < 0 else keys)


def _sizes(tensor: TensorRecord, dynamic: int) -> list[int]:
    return [dynamic if size < 0 else size for size in tensor.shape]


def kernel_cost(record: LayerRecord, gpu: GpuRates | None, dynamic: int = 1) -> Cost:
    """Cost of one kernel.

    Args:
        gpu: what to price against; None leaves the times out.
        dynamic: size of an axis that is not fixed.
    """
    if record.kind == "host":
        return Cost(
            seconds=None if gpu is None else 0.0, floor_seconds=None if gpu is None else 0.0
        )
    moved = sum(tensor.bytes(dynamic) for tensor in record.tensors)
    operations = flops(record, dynamic)
    rate = None
    if gpu is not None:
        attention = record.kind == "attention"
        rate = gpu.attention["native"] if attention else gpu.matrix_rate(record.precision)
    return _priced(moved, operations, rate, gpu, 0 if operations else moved)


def _priced(
    moved: int, operations: int, rate: float | None, gpu: GpuRates | None, memory_bound: int
) -> Cost:
    if gpu is None or rate is None:
        return Cost(1, moved, memory_bound, operations, None, None)
    arithmetic = operations / rate
    seconds = max(moved / gpu.bytes_per_second, arithmetic) + gpu.launch_seconds
    return Cost(1, moved, memory_bound, operations, seconds, arithmetic)


def region_cost(region: Region, gpu: GpuRates | None) -> Cost:
    """Cost of what the runtime launches between two engines.

    Raises:
        BadInput: a node that this version does not launch, or tensors that do not fit it.
    """
    specs = {spec.name: spec for spec in region.tensors}
    return total(region_op_cost(region_op(node, specs), gpu) for node in region.nodes)


def region_op_cost(op: RegionOp, gpu: GpuRates | None) -> Cost:
    """Cost of one node's kernels, as its kind counts them."""
    costs = []
    for launch in op.launches:
        moved, operations = launch.bytes_moved, launch.operations
        # A kernel without matrix arithmetic has no rate, and needs none.
        rate = None if gpu is None else gpu.attention[launch.rate] if operations else math.inf
        costs.append(_priced(moved, operations, rate, gpu, 0 if operations else moved))
    return total(costs)


@dataclass(frozen=True)
class VideoCost:
    """Predicted cost of a video and its parts, each for one run of what it names.

    Attributes:
        engines: one run of each engine.
        regions: one launch of each region.
        timestep: tables of a timestep of the schedule, computed when a bundle is loaded.
        prompt: text encoder and text keys and values.
        step: one denoising step.
        latent: decoding one latent frame.
        video: prompt, three steps and all latent frames; no tables, no copies to the host.
    """

    engines: Mapping[str, Cost]
    regions: Mapping[str, Cost]
    timestep: Cost
    prompt: Cost
    step: Cost
    latent: Cost
    video: Cost


def price(
    manifest: Manifest, layers: Mapping[str, Sequence[LayerRecord]], gpu: GpuRates | None
) -> VideoCost:
    """Price every kernel of a bundle.

    Args:
        layers: records by engine, from ``layers.json``.
        gpu: row of the table for the bundle's target, or None.
    """
    empty = Cost() if gpu is not None else Cost(seconds=None, floor_seconds=None)
    engines = {}
    for name, engine in manifest.engines.items():
        size = usual_size(engine)
        records = usual_records(engine, layers[name])
        engines[name] = sum((kernel_cost(record, gpu, size) for record in records), empty)
    regions = {name: region_cost(region, gpu) for name, region in manifest.regions.items()}

    def once(cadence: Cadence) -> Cost:
        chosen = (engines[name] for name, e in manifest.engines.items() if e.runs == cadence)
        return sum(chosen, empty)

    prompt, latent = once("prompt"), once("latent")
    step = sum(regions.values(), once("step"))
    latents = (manifest.onnx.model.shape.num_frames - 1) // 4 + 1
    video = prompt + step * STEPS + latent * latents
    return VideoCost(engines, regions, once("schedule"), prompt, step, latent, video)


def usual_size(engine: Engine) -> int:
    """Length of a dynamic axis when an engine runs a prompt of the usual length; 1 without one."""
    sizes = [
        profile[-1][axis]
        for spec in engine.inputs
        for axis, size in enumerate(spec.shape)
        for profile in engine.profiles.get(spec.name, ())
        if isinstance(size, str)
    ]
    return min(USUAL_TEXT_LENGTH, max(sizes)) if sizes else 1


def usual_records(engine: Engine, records: Sequence[LayerRecord]) -> list[LayerRecord]:
    """The kernels that run a prompt of the usual length: those of one profile."""
    size = usual_size(engine)
    shapes = {
        spec.name: tuple(size if isinstance(axis, str) else axis for axis in spec.shape)
        for spec in engine.inputs
    }
    profile = engine.profile_for(shapes)
    return [record for record in records if record.profile == profile]
