"""Device memory that a generation needs, from the manifest alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from fastwan.bundle import Engine, Manifest, TensorSpec
from fastwan.quality.cost import STEPS

_BITS = {
    "float4_e2m1fn": 4, "float8_e4m3fn": 8, "uint8": 8, "int8": 8, "bool": 8, "float16": 16,
    "bfloat16": 16, "float32": 32, "int32": 32, "int64": 64,
}  # fmt: skip


def spec_bytes(spec: TensorSpec, dynamic: int = 1) -> int:
    """Bytes of an engine's input or output; channels of ``hwc8`` count padded to 8."""
    sizes = [size if isinstance(size, int) else dynamic for size in spec.shape]
    if spec.format == "hwc8":
        sizes[1] = -(-sizes[1] // 8) * 8
    return -(-math.prod(sizes) * _BITS[spec.dtype] // 8)


def device_bytes(manifest: Manifest) -> dict[str, int]:
    """Device memory by use: engines, one shared scratch buffer, and tensors.

    ``tensors`` is the most that is alive at once in any component, each value in one buffer from
    the engine or region that makes it to the last that reads it.
    """
    weights = sum(manifest.files[engine.file].bytes for engine in manifest.engines.values())
    scratch = max((engine.scratch_bytes for engine in manifest.engines.values()), default=0)
    components = {engine.component for engine in manifest.engines.values()}
    tensors = max((_peak(_calls(manifest, name)) for name in components), default=0)
    return {
        "weights": weights,
        "scratch": scratch,
        "tensors": tensors,
        "total": weights + scratch + tensors,
    }


@dataclass
class _Call:
    """One launch or, of tables, one for each step; `keeps`: what it makes is read in every step."""

    reads: dict[str, int] = field(default_factory=dict)
    writes: dict[str, int] = field(default_factory=dict)
    keeps: bool = False


def _calls(manifest: Manifest, component: str) -> list[_Call]:
    calls = []
    for name, engine in manifest.engines.items():
        if engine.component != component:
            continue
        longest = _longest(engine)
        calls.append(
            _Call(
                _sizes(engine.inputs, longest),
                _sizes(engine.outputs, longest, STEPS if engine.runs == "schedule" else 1),
                keeps=component == "dit" and engine.runs in ("schedule", "prompt"),
            )
        )
        calls += [
            _Call(_sizes(region.inputs), _sizes(region.outputs))
            for region in manifest.regions.values()
            if region.after == name
        ]
    return calls


def _peak(calls: list[_Call]) -> int:
    """Most bytes alive during any call."""
    last = len(calls) - 1
    made = {name for call in calls for name in call.writes}
    spans: dict[str, list[int]] = {}
    sizes: dict[str, int] = {}
    for index, call in enumerate(calls):
        for name, size in {**call.reads, **call.writes}.items():
            # What no call makes comes from outside and is there before the first one.
            span = spans.setdefault(name, [index if name in made else 0, index])
            span[1] = last if call.keeps and name in call.writes else max(span[1], index)
            sizes[name] = max(sizes.get(name, 0), size)
    return max(
        (
            sum(sizes[name] for name, (begin, end) in spans.items() if begin <= index <= end)
            for index in range(len(calls))
        ),
        default=0,
    )


def _sizes(specs: Iterable[TensorSpec], dynamic: int = 1, copies: int = 1) -> dict[str, int]:
    return {spec.name: spec_bytes(spec, dynamic) * copies for spec in specs}


def _longest(engine: Engine) -> int:
    """Greatest size of a dynamic axis of an engine; 1 without."""
    sizes = [1]
    for spec in engine.inputs:
        shapes = engine.profiles.get(spec.name, ())
        for axis, size in enumerate(spec.shape):
            if isinstance(size, str):
                sizes += [profile[-1][axis] for profile in shapes]
    return max(sizes)
