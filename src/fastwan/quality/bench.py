"""``bench``: stage times on a GPU, and exact counts of one video anywhere."""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastwan.bundle import Bundle, open_bundle
from fastwan.engines.layer_json import bundle_layers
from fastwan.errors import BadInput
from fastwan.manifest import LAYERS
from fastwan.progress import Progress, Quiet
from fastwan.quality.baseline import require_same_bundle
from fastwan.quality.bench_report import BenchReport, Measurement, StageTimes
from fastwan.quality.gpu_state import environment, gpu_state
from fastwan.quality.gpus import rates_of
from fastwan.quality.price import enqueues, price
from fastwan.quality.races import find_races
from fastwan.runtime.device.choice import require_emulable, resolve_device
from fastwan.runtime.device.null import Call, NullDevice
from fastwan.runtime.device.platforms import cuda_platform, null_platform
from fastwan.runtime.device.session import Platform, Session
from fastwan.runtime.model.prompt import check_prompt
from fastwan.runtime.model.samplers import schedule_of
from fastwan.runtime.model.schedule import Schedule
from fastwan.runtime.timings import nearest_rank
from fastwan.schema import BundleFacts

if TYPE_CHECKING:
    from fastwan.runtime.device.components import DeviceComponents

DEFAULT_PROMPT = "A curious raccoon peers through a vibrant field of yellow sunflowers."
MAX_RUNS = 100_000
"""Largest number of videos that can be asked for at once."""

WITHOUT_GPU = "count without a GPU by --device null"

COVERS = (
    "text encoding at the prompt's own length, keys and values, {steps} steps, decoding, frames in "
    "pinned host memory; after warm-up, without the time tables, which loading computes, without "
    "drawing noise and without writing a file"
)


def bench(
    path: Path,
    *,
    device: str = "auto",
    runs: int = 5,
    warmup: int = 2,
    prompt: str = DEFAULT_PROMPT,
    sampler: str | None = None,
    baseline: BenchReport | None = None,
    shape: str | None = None,
    progress: Progress | None = None,
) -> BenchReport:
    """Everything ``bench --json`` prints. `compare` holds it against the baseline.

    Args:
        device: "auto", "cuda", "null" for counts alone, or "emulated" for a Hopper GPU, whose times
            are those of the emulation.
        runs: measured videos, after `warmup` videos that are not.
        baseline: report of an earlier run that it will be compared with.
        shape: of the bundle's, e.g. "832x480x81"; its first where None.

    Raises:
        BadInput: no bundle, a number that is none of its option, a blank prompt, a baseline of
            another kind of bundle, or one that cannot be emulated; before anything is measured.
        EnvironmentLacks: the device cannot be used.
    """
    check_runs(runs, warmup)
    check_prompt(prompt)
    bundle = open_bundle(path, shape=shape)
    schedule = schedule_of(bundle.manifest.sampler_spec(sampler))
    report = counts(bundle, schedule)
    if baseline is not None:
        require_same_bundle(report, baseline)
    if device == "null":
        note = "counts of the recording device; there are no times without a GPU"
        return report.model_copy(update={"note": note})
    chosen = resolve_device(device, WITHOUT_GPU)
    if chosen.name == "cpu":
        note = "no CUDA device is visible: exact counts, no times"
        return report.model_copy(update={"note": note})
    started = _usual_start(bundle, chosen.name, schedule)
    measured = _measure(started, schedule, prompt, runs, warmup, progress or Quiet())
    if chosen.name == "emulated":
        measured = measured.model_copy(update={"emulated": True})
    name = started.platform.device.info.name
    found = {"device": name, "note": chosen.note, "measurement": measured}
    return report.model_copy(update=found)


@dataclass(frozen=True)
class _Start:
    """A bundle that was loaded.

    Attributes:
        free_bytes: of the device before.
    """

    platform: Platform
    components: DeviceComponents
    free_bytes: int
    seconds: float


def _usual_start(bundle: Bundle, device: str, schedule: Schedule) -> _Start:
    """Load a bundle twice, and time the second load.

    The first takes longer and more memory: it may compile and compare kernels, and takes once what
    CUDA and the libraries need. What is left of it hangs on what the cache holds, so a figure of it
    can be compared with no other.
    """
    started = _start(bundle, device, schedule)
    free_bytes = started.free_bytes
    started.components.close()
    del started
    gc.collect()
    if torch := sys.modules.get("torch"):
        torch.cuda.empty_cache()  # of an emulation, whose engines torch computes
    # Memory counts from before the first, which took what a process takes once.
    return replace(_start(bundle, device, schedule), free_bytes=free_bytes)


def _start(bundle: Bundle, device: str, schedule: Schedule) -> _Start:
    from fastwan.runtime.device.components import DeviceComponents

    platform = _platform(bundle, device)
    free_bytes = platform.device.free_bytes()
    components = DeviceComponents(bundle, platform)
    begin = time.perf_counter()
    components.load(schedule, text=True, decoder=True)
    return _Start(platform, components, free_bytes, time.perf_counter() - begin)


def _platform(bundle: Bundle, device: str) -> Platform:
    """The first visible GPU, as the bundle's target or in its place."""
    if device == "cuda":
        return cuda_platform(bundle)
    from fastwan.runtime.emulated.platform import emulated_platform

    require_emulable(bundle)
    return emulated_platform(bundle)


def check_runs(runs: int, warmup: int) -> None:
    """Refuse numbers of videos that cannot be measured.

    Raises:
        BadInput: names the option.
    """
    for option, value, least in (("--runs", runs, 1), ("--warmup", warmup, 0)):
        if not least <= value <= MAX_RUNS:
            raise BadInput(f"{value} is not within {least} .. {MAX_RUNS:,}", where=option)


def counts(bundle: Bundle, schedule: Schedule) -> BenchReport:
    """What one video of a known prompt is made of, from the recording device.

    The loop is everything between the launch and the wait for its end.
    """
    device = NullDevice()
    session = Session(null_platform(bundle, device), bundle, schedule)
    session.load()
    recording = session.recording
    session.prepare(*(np.zeros(each.shape, np.float32) for each in recording.embeds))
    loaded = len(device.calls)
    noise = np.zeros(recording.latents.shape, np.float32)
    session.video([noise] * len(recording.noises))
    video = device.calls[loaded:]
    launched = [call for launch in video for call in launch.graph]
    waits = sum(call.kind == "synchronize" for call in (*video, *launched))
    by_kind = enqueues(recording.video)
    kernels = None
    if LAYERS in bundle.manifest.files:
        cost = price(recording, bundle_layers(bundle), rates_of(bundle.manifest.target))
        kernels = cost.of(cost.launch).kernels
    return BenchReport(
        bundle=BundleFacts.of(bundle),
        sampler=schedule.name,
        device="null",
        note="",
        graph_launches=sum(call.kind == "launch" for call in video),
        enqueues=by_kind.total(),
        enqueues_by_kind=by_kind,
        kernels=kernels,
        allocations_in_loop=sum(call.kind == "allocate" for call in (*video, *launched)),
        # The last one ends the loop.
        host_syncs_in_loop=waits - 1,
        bytes_to_host=_copied(launched, "device to host"),
        bytes_to_device=_copied(launched, "host to device"),
        device_bytes=session.plan.device_bytes,
        unshared_arena_bytes=session.plan.unshared,
        races=len(find_races(device.calls)),
        covers=COVERS.format(steps=len(schedule.steps)),
        measurement=None,
        environment=environment(),
    )


def _copied(calls: Sequence[Call], direction: str) -> int:
    copies = [call for call in calls if call.kind == "copy" and call.name == direction]
    return sum(end - begin for call in copies for begin, end in call.writes)


def _measure(
    started: _Start, schedule: Schedule, prompt: str, runs: int, warmup: int, progress: Progress
) -> Measurement:
    """Times of whole videos."""
    from fastwan.runtime.model.noise import DEFAULT_SEED, draw, generator_for
    from fastwan.runtime.timings import Timings

    platform, components = started.platform, started.components
    noises = draw(components.latents_shape, schedule, generator_for(None, DEFAULT_SEED))
    # A negative prompt stays from one video to the next.
    negative = [components.text_encoder.encode("") for _ in range(schedule.prompts - 1)]
    measured: list[Timings] = []
    states = [gpu_state()]
    least = platform.device.free_bytes()
    progress.start("bench", runs + warmup, "videos")
    for _ in range(warmup + runs):
        timings = Timings()
        components.forget()
        with timings.measure("total"):
            with timings.measure("text"):
                embeds = components.text_encoder.encode(prompt)
            for _ in components.video([embeds, *negative], noises, schedule, timings):
                pass
        measured.append(timings)
        states.append(gpu_state())
        least = min(least, platform.device.free_bytes())
        progress.advance()
    progress.finish()
    info = platform.device.info
    return Measurement(
        compute_capability=info.compute_capability,
        driver_cuda=info.driver,
        prompt=prompt,
        runs=runs,
        warmup=warmup,
        times=summarize(measured[warmup:]),
        load_seconds=started.seconds,
        runtime_cache=components.runtime_cache,
        checked=components.session(schedule).checked,
        kernel_choices=platform.choices,
        memory_peak_bytes=started.free_bytes - least,
        gpu_states=tuple(states),
        eager_reason=components.session(schedule).eager_reason,
    )


def summarize(measured: Sequence[Mapping[str, float]]) -> dict[str, StageTimes]:
    """Minimum, median and 95th percentile (nearest rank) of each stage, in milliseconds."""
    result = {}
    for name in measured[0]:
        values = [1e3 * timings[name] for timings in measured]
        result[name] = StageTimes(
            min_ms=min(values), median_ms=statistics.median(values), p95_ms=nearest_rank(values, 95)
        )
    return result
