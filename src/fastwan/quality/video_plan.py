"""``plan``: predicted time and memory of a model at several shapes, without building it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastwan.config import (
    DEFAULT_MODEL,
    FUSIONS,
    MODELS,
    TARGETS,
    VideoShape,
)
from fastwan.parallel import collector_paused
from fastwan.quality.built_records import BuiltRecords, shipped, shipped_records
from fastwan.quality.cost import memory_cost
from fastwan.quality.fit import RESERVED_BYTES, TEXT_BYTES, lighter_texts, misfit
from fastwan.quality.gpus import UNKNOWN, rates_of
from fastwan.quality.inspection import milliseconds
from fastwan.quality.plan_report import (
    PlannedShape,
    PlannedTarget,
    PlannedText,
    PlannedVideo,
    PlanReport,
)
from fastwan.quality.price import VideoCost, price
from fastwan.quality.reshape import reshaped
from fastwan.runtime.model.samplers import schedule_of
from fastwan.runtime.recording.memory_plan import DeviceBytes, plan
from fastwan.runtime.recording.record import Recording, record
from fastwan.tables import known, lookup
from fastwan.target_checks import require_attention, require_recipe

AUTO = "auto"
NO_TEXT = "none"

USUAL_SHAPES = tuple(
    VideoShape(height=height, width=width, num_frames=frames)
    for width, height in ((832, 480), (480, 832), (1280, 720), (720, 1280))
    for frames in (1, 17, 49, 81, 121)
)
"""What is planned where no shape is given: both published sizes, upright too, up to 5 s."""


@dataclass(frozen=True)
class PlanSpec:
    """Options of ``plan``.

    Attributes:
        model: row of `fastwan.config.MODELS`.
        targets: rows of `fastwan.config.TARGETS`; all that run the model where there are none.
        attention: the model's own where None.
        fusion: row of `fastwan.config.FUSIONS`; "auto" takes the last of them on record.
        sampler: one of the model's; its first where None.
        shapes: `USUAL_SHAPES` where there are none.
        text_encoder_recipe: of the text encoder beside it; "none" leaves it out.
    """

    model: str = DEFAULT_MODEL
    targets: tuple[str, ...] = ()
    attention: str | None = None
    fusion: str = AUTO
    sampler: str | None = None
    shapes: tuple[VideoShape, ...] = ()
    text_encoder_recipe: str = "bf16"


def plan_shapes(spec: PlanSpec) -> PlanReport:
    """Plan a model at several shapes from the shipped records of its build.

    Raises:
        BadInput: a model, target and attention that `build-engine` refuses together, or a model
            and attention without records.
    """
    preset = lookup(MODELS, spec.model, "model")
    attention = spec.attention or preset.attention
    for name in spec.targets:
        target = lookup(TARGETS, name, "target")
        require_recipe(target, preset.recipe, preset.name, f"one of {', '.join(preset.targets)}")
        require_attention(target, attention)
    named = spec.targets or tuple(n for n in preset.targets if attention in TARGETS[n].attentions)
    records = shipped_records(preset.name, attention, _fusion(spec, attention))
    # A recording is many objects without a cycle: the search took a quarter of a plan's time.
    with collector_paused():
        return report_of(records, replace(spec, targets=named))


def report_of(records: BuiltRecords, spec: PlanSpec) -> PlanReport:
    """The report of a build's records, for the targets, the sampler and the shapes of `spec`."""
    manifest = records.manifest
    sampler = manifest.sampler_spec(spec.sampler)
    text = _text_encoder(spec.text_encoder_recipe)
    return PlanReport(
        model=manifest.onnx.model.name,
        recipe=manifest.onnx.model.recipe,
        attention=manifest.attention,
        fusion=manifest.fusion,
        sampler=sampler.name,
        steps=sampler.steps,
        guided=sampler.guidance != 1,
        built_for=manifest.target,
        built_shape=manifest.onnx.model.shape,
        versions=manifest.versions,
        text_encoder=text,
        targets={name: _target(name, text) for name in dict.fromkeys(spec.targets)},
        rows=tuple(
            planned(records, shape, spec, 0 if text is None else text.bytes)
            for shape in spec.shapes or USUAL_SHAPES
        ),
    )


def planned(
    records: BuiltRecords, shape: VideoShape, spec: PlanSpec, text_encoder: int = 0
) -> PlannedShape:
    """A row: the recorded video of a shape, priced and laid out in memory as a bundle's is.

    Args:
        text_encoder: bytes of the text encoder beside it.
    """
    there = reshaped(records, shape)
    recording = record(there.manifest, schedule_of(there.manifest.sampler_spec(spec.sampler)))
    memory = plan(recording).device_bytes
    return PlannedShape(
        shape=shape,
        tokens=shape.num_tokens,
        padded_tokens=shape.padded_tokens,
        device_bytes=memory,
        needed_bytes=memory.total + text_encoder + RESERVED_BYTES,
        targets={
            name: _video(recording, there, name, memory, text_encoder)
            for name in dict.fromkeys(spec.targets)
        },
    )


def _video(
    recording: Recording, there: BuiltRecords, target: str, memory: DeviceBytes, text_encoder: int
) -> PlannedVideo:
    gpu = rates_of(target)
    peak = price(recording, there.layers, gpu)
    sober = price(recording, there.layers, gpu.sober or UNKNOWN)
    why = misfit(memory.total + text_encoder, target, lighter_texts(target, text_encoder))
    return PlannedVideo(
        kernels=peak.video.kernels,
        bytes_moved=peak.video.bytes_moved,
        flops=peak.video.flops,
        step_ms=milliseconds(_step(peak)),
        decode_ms=milliseconds(_decode(peak)),
        video_ms=milliseconds(peak.video.seconds),
        sober_step_ms=milliseconds(_step(sober)),
        sober_decode_ms=milliseconds(_decode(sober)),
        sober_video_ms=milliseconds(sober.video.seconds),
        fits=None if not gpu.memory_bytes else not why,
        why=f"{why}; {_uses(memory, text_encoder)}" if why else "",
    )


def _step(cost: VideoCost) -> float:
    return cost.of(cost.steps).seconds / len(cost.steps)


def _decode(cost: VideoCost) -> float:
    return cost.of(each for each in cost.stages if each == "decode").seconds


def _target(name: str, text: PlannedText | None) -> PlannedTarget:
    gpu = rates_of(name)
    return PlannedTarget(
        gpu=TARGETS[name].gpu,
        memory_bytes=gpu.memory_bytes or None,
        rates=f"{gpu.date}: {gpu.source}" if gpu.name else None,
        sober_rates=None if gpu.sober is None else f"{gpu.sober.date}: {gpu.sober.source}",
        text_encoder_ms=(
            None if text is None else milliseconds(memory_cost(text.bytes, gpu).seconds)
        ),
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


def _text_encoder(recipe: str) -> PlannedText | None:
    if recipe == NO_TEXT:
        return None
    return PlannedText(
        recipe=recipe, bytes=lookup(TEXT_BYTES, recipe, "recipe of the text encoder")
    )
