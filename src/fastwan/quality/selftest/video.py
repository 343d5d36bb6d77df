"""The last two stages: a captured video against its calls one by one, and times."""

from __future__ import annotations

import statistics
import warnings

import numpy as np

from fastwan.engines.layer_json import bundle_layers
from fastwan.manifest import LAYERS
from fastwan.quality.bench import counts
from fastwan.quality.gpus import rates_of
from fastwan.quality.price import price
from fastwan.quality.selftest.context import Context, Outcome, Skip, StageFailure
from fastwan.quality.selftest.report import Figure
from fastwan.quality.verify.graphs import random_inputs
from fastwan.runtime.model.executor import Array
from fastwan.runtime.model.noise import DEFAULT_SEED, draw, generator_for

RUNS = 5
"""Videos whose times are measured."""


def capture(context: Context) -> Outcome:
    """One graph launch makes the frames that its calls make when they are enqueued one by one."""
    session = context.session
    frames = session.recording.frames
    if frames is None:
        raise Skip("the bundle has no decoder: no graph of a video")
    with warnings.catch_warnings():
        # A capture that fails is the finding of this stage.
        warnings.simplefilter("ignore", RuntimeWarning)
        player = session.load()
        noises = _prepare(context)
        graphed = session.video(noises).copy()
    if session.eager_reason:
        raise StageFailure(f"the video cannot be captured as a graph: {session.eager_reason}")
    player.enqueue(session.recording.video)
    player.synchronize()
    eager = player.memory.view(frames).copy()
    if differing := int((graphed != eager).sum()):
        raise StageFailure(
            f"{differing:,} of {graphed.size:,} values of the frames differ between the graph and "
            "its calls one by one",
            (Figure(name="values that differ", value=float(differing), limit=0.0),),
        )
    if graphed.min() == graphed.max():
        raise StageFailure(f"every value of the frames is {graphed.min()}")
    free = context.device.free_bytes()
    for _ in range(2):
        if not np.array_equal(session.video(noises), graphed):
            raise StageFailure("the same video again has other frames")
    chunks = [chunk.copy() for chunk in session.video_chunks(noises)]
    if not np.array_equal(np.concatenate(chunks), graphed):
        raise StageFailure("frames that are read while a video is made are not those of the video")
    taken = free - context.device.free_bytes()
    played = "" if session.checked is None else f"; {session.checked.played}"
    return Outcome(
        f"{len(graphed)} frames, identical as a graph, call by call and again{played}",
        (
            Figure(name="values that differ", value=0.0, limit=0.0),
            Figure(name="device memory that two videos take", value=float(taken), unit="bytes"),
        ),
    )


def capture_on_host(context: Context) -> Outcome:
    """What a video is made of, by the recording device: one launch, no allocation, no race."""
    report = counts(context.bundle, context.schedule)
    rows = [
        ("graph launches", report.graph_launches, 1),
        ("allocations in the loop", report.allocations_in_loop, 0),
        ("waits of the host in the loop", report.host_syncs_in_loop, 0),
        ("races", report.races, 0),
    ]
    figures = tuple(
        Figure(name=name, value=float(value), limit=float(limit)) for name, value, limit in rows
    )
    for name, value, limit in rows:
        if value > limit:
            raise StageFailure(f"{value} {name} in place of {limit}", figures)
    return Outcome(f"{report.enqueues} enqueues of a video on the recording device", figures)


def times(context: Context) -> Outcome:
    """Median times of the video's stages, beside what was predicted for the bundle's target."""
    session = context.session
    if session.recording.frames is None:
        raise Skip("the bundle has no decoder: no graph of a video")
    noises = _prepare(context)
    measured: list[dict[str, float]] = []
    for _ in range(RUNS):
        session.video(noises)
        measured.append(session.milliseconds())
    found = [
        Figure(
            name=name,
            value=statistics.median(each[name] for each in measured),
            unit="ms",
            label="emulated" if context.machine.kind == "emulated" else "measured",
        )
        for name in measured[0]
    ]
    predicted = _predicted(context)
    sides: dict[str, list[str]] = {}
    for figure in (*found, *predicted):
        sides.setdefault(figure.name, []).append(f"{figure.value:.2f} ({figure.label})")
    said = "; ".join(f"{name} {', '.join(values)} ms" for name, values in sides.items())
    note = said if found else f"the device has no clock; {said}"
    return Outcome(note, (*found, *predicted))


def times_on_host(context: Context) -> Outcome:
    """What is predicted; nothing is measured without a GPU."""
    predicted = _predicted(context)
    if not predicted:
        raise Skip("there are no rates of the bundle's target, or no records of its kernels")
    said = "; ".join(f"{figure.name} {figure.value:.2f} ms" for figure in predicted)
    return Outcome(f"{said} (predicted)", predicted)


def _prepare(context: Context) -> list[Array]:
    """Have a prompt's keys and values computed; noises of a video."""
    session = context.session
    session.prepare(*[random_inputs(context.subject)[1]] * context.schedule.prompts)
    shape = session.recording.latents.shape
    return list(draw(shape, context.schedule, generator_for(None, DEFAULT_SEED)))


def _predicted(context: Context) -> tuple[Figure, ...]:
    """Times of the video's stages by the builder's records and the table of rates."""
    manifest = context.bundle.manifest
    if LAYERS not in manifest.files:
        return ()
    cost = price(context.recording, bundle_layers(context.bundle), rates_of(manifest.target))
    return tuple(
        Figure(name=name, value=1e3 * stage.cost.seconds, unit="ms", label="predicted")
        for name, stage in cost.stages.items()
        if name in cost.launch and np.isfinite(stage.cost.seconds)
    )
