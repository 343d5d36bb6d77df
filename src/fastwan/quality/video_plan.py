"""``plan``: predicted time and memory of a model at several shapes, without building it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fastwan.config import FUSIONS, MODELS, TARGETS, TextEncoderConfig, VideoShape
from fastwan.errors import BadInput
from fastwan.quality.built_records import BuiltRecords, shipped, shipped_records
from fastwan.quality.cost import memory_cost
from fastwan.quality.fit import RESERVED_BYTES, misfit
from fastwan.quality.gpus import UNKNOWN, GpuRates, rates_of
from fastwan.quality.inspection import milliseconds
from fastwan.quality.plan_report import PlannedShape, PlannedText, PlanReport
from fastwan.quality.price import price
from fastwan.quality.reshape import reshaped
from fastwan.runtime.model.samplers import schedule_of
from fastwan.runtime.recording.memory_plan import DeviceBytes, plan
from fastwan.runtime.recording.record import record
from fastwan.tables import known, lookup

AUTO = "auto"
NO_TEXT = "none"

USUAL_SHAPES = tuple(
    VideoShape(height=height, width=width, num_frames=frames)
    for width, height in ((832, 480), (480, 832), (1280, 720), (720, 1280))
    for frames in (1, 17, 49, 81, 121)
)
"""What is planned where no shape is given: both published sizes, upright too, up to 5 s."""

_SHAPE = re.compile(r"(\d{1,5})x(\d{1,5})x(\d{1,5})")
_LINEARS = 4 * 4096 * 4096 + 3 * 4096 * 10240
"""Weights of the linears of a block of UMT5-XXL."""
TEXT_BYTES = {
    "bf16": 9_300_000_000,
    "nvfp4": 4_100_000_000,
    "fp8": TextEncoderConfig().num_layers * _LINEARS,
}
"""Engines of UMT5-XXL by recipe: as built in bf16 and NVFP4 (docs/figures.md), of FP8 the codes."""


@dataclass(frozen=True)
class PlanSpec:
    """Options of ``plan``.

    Attributes:
        model: row of `fastwan.config.MODELS`.
        target: row of `fastwan.config.TARGETS`.
        attention: the model's own where None.
        fusion: row of `fastwan.config.FUSIONS`; "auto" takes the last of them on record.
        sampler: one of the model's; its first where None.
        shapes: `USUAL_SHAPES` where there are none.
        text_encoder_recipe: of the text encoder beside it; "none" leaves it out.
    """

    model: str = "FastWan-QAD-1.3B"
    target: str = "rtx5090"
    attention: str | None = None
    fusion: str = AUTO
    sampler: str | None = None
    shapes: tuple[VideoShape, ...] = ()
    text_encoder_recipe: str = "bf16"


def parse_shape(text: str) -> VideoShape:
    """A shape as people write it, e.g. ``832x480x81``.

    Raises:
        BadInput: not of that form, or no shape of a video.
    """
    match = _SHAPE.fullmatch(text.strip())
    if match is None:
        raise BadInput(
            f"{text!r:.40} is no WIDTHxHEIGHTxFRAMES", where="--shape", fix="e.g. 832x480x81"
        )
    width, height, frames = map(int, match.groups())
    return VideoShape(height=height, width=width, num_frames=frames)


def plan_shapes(spec: PlanSpec) -> PlanReport:
    """Plan a model at several shapes from the shipped records of its build.

    Raises:
        BadInput: a pair of model, target and attention that `build-engine` refuses, or one without
            records.
    """
    preset = lookup(MODELS, spec.model, "model")
    target = lookup(TARGETS, spec.target, "target")
    attention = spec.attention or preset.attention
    if preset.recipe not in target.recipes:
        raise BadInput(
            f"{target.gpu} has no {preset.recipe} GEMM, which {preset.name} needs",
            where="--target",
            fix=f"one of {', '.join(preset.targets)}",
        )
    if attention not in target.attentions:
        raise BadInput(
            f"{target.gpu} cannot run the attention {attention}",
            where="--attention",
            fix="one of " + ", ".join(target.attentions),
        )
    fusion = _fusion(spec, attention)
    records = shipped_records(preset.name, attention, fusion)
    return report_of(records, spec, spec.shapes or USUAL_SHAPES)


def report_of(records: BuiltRecords, spec: PlanSpec, shapes: Sequence[VideoShape]) -> PlanReport:
    """The report of a build's records, for the target and the sampler of `spec`."""
    manifest = records.manifest
    sampler = manifest.sampler_spec(spec.sampler)
    gpu = rates_of(spec.target)
    text = _text_encoder(spec.text_encoder_recipe, gpu)
    beside = RESERVED_BYTES + (0 if text is None else text.bytes)
    return PlanReport(
        model=manifest.onnx.model.name,
        recipe=manifest.onnx.model.recipe,
        target=spec.target,
        attention=manifest.attention,
        fusion=manifest.fusion,
        sampler=sampler.name,
        steps=sampler.steps,
        built_for=manifest.target,
        built_shape=manifest.onnx.model.shape,
        versions=manifest.versions,
        rates=f"{gpu.date}: {gpu.source}" if gpu.name else None,
        sober_rates=None if gpu.sober is None else f"{gpu.sober.date}: {gpu.sober.source}",
        text_encoder=text,
        rows=tuple(planned(records, shape, spec, beside) for shape in shapes),
    )


def planned(
    records: BuiltRecords, shape: VideoShape, spec: PlanSpec, beside: int = RESERVED_BYTES
) -> PlannedShape:
    """A row: the recorded video of a shape, priced and laid out in memory as a bundle's is.

    Args:
        beside: bytes that the target needs for anything but the video.
    """
    there = reshaped(records, shape)
    schedule = schedule_of(there.manifest.sampler_spec(spec.sampler))
    recording = record(there.manifest, schedule)
    gpu = rates_of(spec.target)
    cost = price(recording, there.layers, gpu)
    sober = price(recording, there.layers, gpu.sober or UNKNOWN)
    memory = plan(recording).device_bytes
    why = misfit(memory.total + beside - RESERVED_BYTES, spec.target)
    return PlannedShape(
        shape=shape,
        tokens=shape.num_tokens,
        padded_tokens=shape.padded_tokens,
        kernels=cost.video.kernels,
        bytes_moved=cost.video.bytes_moved,
        flops=cost.video.flops,
        step_ms=milliseconds(cost.of(cost.steps).seconds / len(cost.steps)),
        decode_ms=milliseconds(cost.of(each for each in cost.stages if each == "decode").seconds),
        video_ms=milliseconds(cost.video.seconds),
        sober_step_ms=milliseconds(sober.of(sober.steps).seconds / len(sober.steps)),
        sober_video_ms=milliseconds(sober.video.seconds),
        device_bytes=memory,
        needed_bytes=memory.total + beside,
        fits=None if not gpu.memory_bytes else not why,
        why=f"{why}; {_uses(memory, beside - RESERVED_BYTES)}" if why else "",
    )


def _uses(memory: DeviceBytes, text_encoder: int) -> str:
    sizes = {
        "text encoder": text_encoder,
        "weights": memory.weights,
        "scratch": memory.scratch,
        "tensors between engines": memory.arena,
        "tables and constants": memory.fixed,
    }
    largest = sorted(sizes.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in largest if size >= 5e7)


def _fusion(spec: PlanSpec, attention: str) -> str:
    if spec.fusion != AUTO:
        return known(FUSIONS, spec.fusion, "fusion")
    kept = {fusion for model, mode, fusion in shipped() if (model, mode) == (spec.model, attention)}
    return next((each for each in reversed(FUSIONS) if each in kept), next(iter(FUSIONS)))


def _text_encoder(recipe: str, gpu: GpuRates) -> PlannedText | None:
    if recipe == NO_TEXT:
        return None
    size = lookup(TEXT_BYTES, recipe, "recipe of the text encoder")
    return PlannedText(
        recipe=recipe, bytes=size, predicted_ms=milliseconds(memory_cost(size, gpu).seconds)
    )
