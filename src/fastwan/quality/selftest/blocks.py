"""One block engine by engine, and one denoising step, against the references.

FP4 activations are chaotic, so a limit is what the reference itself makes of inputs that moved by
one unit in the last place of bf16, times `MARGIN`; see `fastwan.quality.verify.steps`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import islice

import numpy as np
import torch

from fastwan.dtypes import PAIRED
from fastwan.export.dit_onnx import CPU_REFERENCE_TOKENS
from fastwan.manifest import Manifest, TensorSpec
from fastwan.quality.selftest.context import Context, Outcome, Skip, StageFailure
from fastwan.quality.selftest.engine_references import Ran
from fastwan.quality.selftest.memory import Scratch
from fastwan.quality.selftest.report import Figure
from fastwan.quality.verify.graphs import random_inputs, relative_difference
from fastwan.quality.verify.steps import MARGIN
from fastwan.runtime.cpu.components import CpuComponents
from fastwan.runtime.device.constants import initializers
from fastwan.runtime.model.executor import Array
from fastwan.runtime.model.noise import DEFAULT_SEED, draw, generator_for
from fastwan.schema import Label

FLOOR = 2.0**-8
"""Least limit: two roundings to bf16 of the same number may be this far apart."""

_TRIALS = 2
_FLOATS = ("bfloat16", "float16", "float32")
_TOO_LONG = (
    f"the CPU reference is for {CPU_REFERENCE_TOKENS:,} tokens, this bundle makes {{tokens:,}}"
)


def block(context: Context) -> Outcome:
    """The engines of the first block on the GPU, each with the inputs that the reference has."""
    figures = []
    for ran in _first_block(context):
        found = _on_device(context, ran)
        sensitivity = _sensitivity(context, ran)
        for name, expected in ran.outputs.items():
            limit = max(FLOOR, MARGIN * sensitivity[name])
            figures.append(
                Figure(
                    name=f"relative L2 of {name}",
                    value=_finite(relative_difference(_wide(expected), _wide(found[name]))),
                    limit=limit,
                    label=_label(context),
                )
            )
            if not figures[-1].value <= limit:
                raise StageFailure(
                    f"{name} of the engine {ran.name} differs from the reference by "
                    f"{figures[-1].value:.3g}, more than {limit:.3g}",
                    tuple(figures),
                )
    return Outcome(f"{len(figures)} tensors of the first block's engines", tuple(figures))


def block_on_host(context: Context) -> Outcome:
    """The reference of the block itself: finite, and as sensitive as it is."""
    figures = []
    for ran in _first_block(context):
        for name, made in ran.outputs.items():
            if not np.isfinite(_wide(made)).all() or not _wide(made).any():
                raise StageFailure(f"{name} of {ran.name} is not finite, or zero")
        figures += [
            Figure(name=f"sensitivity of {name}", value=value, label="emulated")
            for name, value in _sensitivity(context, ran).items()
        ]
    return Outcome(
        f"{len(figures)} tensors of the first block's engines, their graphs on ONNX Runtime and "
        "attention in torch",
        tuple(figures),
    )


def step(context: Context) -> Outcome:
    """The first denoising step of the runtime's session against the references' velocity."""
    session = context.session
    noises = draw(
        session.recording.latents.shape, context.schedule, generator_for(None, DEFAULT_SEED)
    )
    embeds = random_inputs(context.subject)[1]
    # Led away from its own prompt a step stays where it is: the velocity is that of the prompt.
    session.prepare(*[embeds] * context.schedule.prompts)
    steps: list[Array] = []
    session.denoise(noises, lambda _i, _t, latents: steps.append(latents.copy()))
    first = steps[0]
    session.denoise(noises, lambda _i, _t, latents: steps.append(latents.copy()))
    again = steps[len(steps) // 2]
    if not np.array_equal(first, again):
        raise StageFailure(
            f"{int((first != again).sum()):,} latents of a step differ when repeated"
        )
    if not np.isfinite(first).all() or float(first.std()) == 0:
        raise StageFailure("latents of a step are not finite, or all the same")
    tokens = context.bundle.manifest.onnx.model.shape.num_tokens
    if tokens > CPU_REFERENCE_TOKENS:
        return Outcome(
            f"finite and the same twice; not compared: {_TOO_LONG.format(tokens=tokens)}"
        )
    timestep = context.schedule.steps[0].timestep

    def latents_after(start: Array) -> Array:
        *_, last = context.references.step(start, timestep, embeds)
        return _after(context, noises, _wide(last.outputs["velocity"]))

    moved = [_moved(noises[0], trial) for trial in range(_TRIALS)]
    figure = _compared(context, "latents after a step", latents_after, noises[0], moved, first)
    return Outcome("latents after one step, and the same twice", (figure,))


def step_on_host(context: Context) -> Outcome:
    """The graphs of the engines and the regions' references against the bundle's CPU graph."""
    subject = context.subject
    if subject.attention.name != context.bundle.manifest.attention:
        raise Skip(f"the bundle's CPU graph has the attention {subject.attention.name}")
    _require_short(context)
    latents, embeds = random_inputs(subject)
    timestep = context.schedule.steps[0].timestep
    dit = CpuComponents(context.bundle).dit
    prepared = dit.prepare(embeds)

    def velocity(start: Array) -> Array:
        return _wide(dit.velocity(start, timestep, prepared))

    *_, last = context.references.step(latents, timestep, embeds)
    moved = [_moved(latents, trial) for trial in range(_TRIALS)]
    found = _wide(last.outputs["velocity"])
    figure = _compared(context, "velocity of a step", velocity, latents, moved, found)
    return Outcome("engines' graphs and regions one by one against the CPU graph", (figure,))


def _compared(
    context: Context,
    name: str,
    reference: Callable[[Array], Array],
    start: Array,
    moved: list[Array],
    found: Array,
) -> Figure:
    """A result against its reference, within the reference's own sensitivity.

    Raises:
        StageFailure: it is further away.
    """
    expected = reference(start)
    sensitivity = max(relative_difference(expected, reference(each)) for each in moved)
    limit = max(FLOOR, MARGIN * sensitivity)
    value = _finite(relative_difference(expected, found))
    figure = Figure(name=f"relative L2 of {name}", value=value, limit=limit, label=_label(context))
    if not value <= limit:
        raise StageFailure(
            f"{name} differ from the reference by {value:.3g}, more than {limit:.3g}", (figure,)
        )
    return figure


def _first_block(context: Context) -> list[Ran]:
    """Engines up to the one in front of the second attention, or the first where none is divided.

    Raises:
        Skip: the reference would hold the scores of every pair of tokens.
    """
    manifest = context.bundle.manifest
    if not manifest.regions:
        _require_short(context)
    tokens = manifest.onnx.model.shape.num_tokens
    if tokens > CPU_REFERENCE_TOKENS and not torch.cuda.is_available():
        raise Skip(f"{_TOO_LONG.format(tokens=tokens)}, and torch has no CUDA")
    latents, embeds = random_inputs(context.subject)
    if context.subject.check_shape != context.subject.shape:
        generator = np.random.default_rng(0)
        shape = context.recording.latents.shape
        latents = generator.standard_normal(shape).astype(np.float32)
    timestep = context.schedule.steps[0].timestep
    ran = context.references.step(latents, timestep, embeds)
    return list(islice(ran, _engines_of_a_block(manifest)))


def _engines_of_a_block(manifest: Manifest) -> int:
    """Engines of a step up to the one in front of the second region of a kind of one a block."""
    steps = [name for name, engine in manifest.engines.items() if engine.runs == "step"]
    regions = list(manifest.regions.values())
    if not regions:
        return 1
    kinds = Counter(each.nodes[0].op for each in regions)
    layers = manifest.onnx.model.dit.num_layers
    once = next((op for op, count in kinds.items() if count == layers), None)
    again = [each.after for each in regions if each.nodes[0].op == once][1:2]
    return steps.index(again[0]) + 1 if again else len(steps)


def _require_short(context: Context) -> None:
    """Raises `Skip` for a video that has no CPU reference."""
    tokens = context.bundle.manifest.onnx.model.shape.num_tokens
    if tokens > CPU_REFERENCE_TOKENS:
        raise Skip(_TOO_LONG.format(tokens=tokens))


def _on_device(context: Context, ran: Ran) -> dict[str, Array]:
    """What an engine makes of its inputs on the GPU."""
    engine = context.engines[ran.name]
    record = context.bundle.manifest.engines[ran.name]
    with Scratch(context.device) as scratch:
        bindings = {
            spec.name: (scratch.put(ran.inputs[spec.name]), _bound(spec, ran.inputs[spec.name]))
            for spec in record.inputs
        } | {
            name: (scratch.space(value.nbytes), value.shape) for name, value in ran.outputs.items()
        }
        weights = {spec.name: spec for spec in record.constants}
        for name, content in initializers(context.bundle, list(weights)):
            shape = tuple(map(int, weights[name].shape))
            bindings[name] = scratch.put(np.frombuffer(content, np.uint8)), shape
        size = max(engine.scratch_bytes, record.scratch_bytes)
        engine.enqueue(bindings, scratch.space(size), size, scratch.stream)
        return {spec.name: scratch.get(*bindings[spec.name], spec.dtype) for spec in record.outputs}


def _bound(spec: TensorSpec, value: Array) -> tuple[int, ...]:
    """The shape by which an engine takes a value: that of its numbers, which may lie two a byte."""
    return tuple(map(int, spec.shape)) if spec.dtype in PAIRED else value.shape


def _sensitivity(context: Context, ran: Ran) -> dict[str, float]:
    """Largest relative change of each output when the inputs move by a bit of bf16."""
    changes = dict.fromkeys(ran.outputs, 0.0)
    for trial in range(_TRIALS):
        inputs = {
            name: _moved(value, trial) if value.dtype.name in _FLOATS else value
            for name, value in ran.inputs.items()
        }
        for name, value in context.references.run(ran.name, inputs).items():
            change = relative_difference(_wide(ran.outputs[name]), _wide(value))
            changes[name] = max(changes[name], _finite(change))
    return changes


def _moved(values: Array, trial: int) -> Array:
    """Every number moved by one unit in the last place of bf16, up, down or not at all."""
    generator = np.random.default_rng(trial + 1)
    factor = 1 + 2.0**-8 * generator.integers(-1, 2, values.shape)
    return (values.astype(np.float32) * factor).astype(values.dtype)


def _after(context: Context, noises: list[Array], velocity: Array) -> Array:
    """Latents after the first step that has a velocity."""
    from fastwan.runtime.model.loop import combine, denoise

    states: list[Array] = []
    denoise(
        lambda _latents, _timestep: velocity,
        noises[0],
        context.schedule,
        noises[1:],
        combine=combine,
        on_step=lambda _i, _t, latents: states.append(latents),
    )
    return states[0]


def _wide(values: Array) -> Array:
    return values.astype(np.float32)


def _finite(value: float) -> float:
    return value if np.isfinite(value) else float(np.finfo(np.float32).max)


def _label(context: Context) -> Label:
    return "measured" if context.machine.kind == "cuda" else "emulated"
