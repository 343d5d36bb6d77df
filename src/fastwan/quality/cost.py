"""What kernels cost: bytes, operations, and the time that follows from both.

Every time here is predicted: a kernel takes the longer of its memory traffic at full bandwidth and
its arithmetic at the rate of the table, plus a launch. Nothing of it was run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fastwan.engines.layers import LayerRecord, TensorRecord
from fastwan.errors import BadInput
from fastwan.manifest import LAYERS, Engine, Region
from fastwan.plugins.regions import Launch, RegionOp, region_op
from fastwan.quality.gpus import GpuRates

USUAL_TEXT_LENGTH = 128
"""Tokens of the prompt that is priced: a few sentences."""


_OWN_ATTENTION = {"FP8": "fp8", "FP8E4M3": "fp8"}
"""Mode that the builder's own attention is priced as, by what it multiplies."""


@dataclass(frozen=True)
class Cost:
    """Sum over kernels.

    Attributes:
        bytes_moved: everything read and written, weights included.
        memory_bound_bytes: the part of kernels without matrix arithmetic.
        flops: operations of GEMMs, attentions and convolutions, two a multiply-add.
        seconds: predicted time; NaN where a rate of the GPU is not known.
        floor_seconds: predicted time of the matrix arithmetic alone, nothing else between.
    """

    kernels: int = 0
    bytes_moved: int = 0
    memory_bound_bytes: int = 0
    flops: int = 0
    seconds: float = 0.0
    floor_seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.kernels + other.kernels,
            self.bytes_moved + other.bytes_moved,
            self.memory_bound_bytes + other.memory_bound_bytes,
            self.flops + other.flops,
            self.seconds + other.seconds,
            self.floor_seconds + other.floor_seconds,
        )

    def __mul__(self, times: int) -> Cost:
        return Cost(
            self.kernels * times,
            self.bytes_moved * times,
            self.memory_bound_bytes * times,
            self.flops * times,
            self.seconds * times,
            self.floor_seconds * times,
        )


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
    if not record.inputs or len(record.inputs[-1].shape) < 2:
        raise BadInput(f"attention without keys and values: {record.name}", where=LAYERS)
    written = sum(tensor.elements(dynamic) for tensor in record.outputs)
    keys = record.inputs[-1].shape[-2]
    return 4 * written * (dynamic if keys < 0 else keys)


def _sizes(tensor: TensorRecord, dynamic: int) -> list[int]:
    return [dynamic if size < 0 else size for size in tensor.shape]


def kernel_cost(record: LayerRecord, gpu: GpuRates, dynamic: int = 1) -> Cost:
    """Cost of one kernel.

    Args:
        gpu: what to price against.
        dynamic: size of an axis that is not fixed.

    Raises:
        BadInput: an unknown dtype, or an attention whose tensors are none of one.
    """
    if record.kind == "host":
        return Cost()
    moved = sum(tensor.bytes(dynamic) for tensor in record.tensors)
    operations = flops(record, dynamic)
    if not operations:
        return memory_cost(moved, gpu)
    if record.kind == "attention":
        rate = gpu.attention_rate(_OWN_ATTENTION.get(record.precision, "native"))
    else:
        rate = gpu.matrix_rate(record.precision)
    return matrix_cost(moved, operations, rate, gpu)


def memory_cost(moved: int, gpu: GpuRates) -> Cost:
    """Cost of a kernel that only moves memory."""
    seconds = moved / gpu.bytes_per_second + gpu.launch_seconds
    return Cost(1, moved, moved, 0, seconds, 0.0)


def matrix_cost(moved: int, operations: int, rate: float, gpu: GpuRates) -> Cost:
    """Cost of a kernel with matrix arithmetic at `rate` operations a second."""
    arithmetic = operations / rate
    # numpy's maximum is NaN where either is.
    longer = float(np.maximum(moved / gpu.bytes_per_second, arithmetic))
    return Cost(1, moved, 0, operations, longer + gpu.launch_seconds, arithmetic)


def region_cost(region: Region, gpu: GpuRates) -> Cost:
    """Cost of what the runtime launches between two engines.

    Raises:
        BadInput: a node that this version does not launch, or tensors that do not fit it.
    """
    specs = {spec.name: spec for spec in region.tensors}
    return total(region_op_cost(region_op(node, specs), gpu) for node in region.nodes)


def region_op_cost(op: RegionOp, gpu: GpuRates) -> Cost:
    """Cost of one node's kernels on a GPU, as its kind counts them."""
    launches = op.on(gpu.sms).launches
    return total(launch_cost(launch, gpu) for launch in launches)


def launch_cost(launch: Launch, gpu: GpuRates) -> Cost:
    """Cost of one kernel of a region."""
    if not launch.operations:
        return memory_cost(launch.bytes_moved, gpu)
    rate = gpu.attention_rate(launch.rate)
    return matrix_cost(launch.bytes_moved, launch.operations, rate, gpu)


def engine_cost(engine: Engine, records: Sequence[LayerRecord], gpu: GpuRates) -> Cost:
    """Cost of one run of an engine, with a prompt of the usual length.

    Args:
        records: of every optimization profile.
    """
    size = usual_size(engine)
    return total(kernel_cost(record, gpu, size) for record in usual_records(engine, records))


def usual_size(engine: Engine) -> int:
    """Size of a dynamic axis when an engine runs a prompt of the usual length; 1 without one."""
    sizes = [
        profile[-1][axis]
        for spec in engine.inputs
        for axis, size in enumerate(spec.shape)
        for profile in engine.profiles.get(spec.name, ())
        if isinstance(size, str)
    ]
    return min(USUAL_TEXT_LENGTH, max(sizes)) if sizes else 1


def usual_records(engine: Engine, records: Sequence[LayerRecord]) -> list[LayerRecord]:
    """The kernels that run a prompt of the usual length: those of one optimization profile."""
    size = usual_size(engine)
    shapes = {
        spec.name: tuple(size if isinstance(axis, str) else axis for axis in spec.shape)
        for spec in engine.inputs
    }
    profile = engine.profile_for(shapes)
    return [record for record in records if record.profile == profile]
