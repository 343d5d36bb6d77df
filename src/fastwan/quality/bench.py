"""``bench``: stage times on a GPU, and exact counts of one video anywhere."""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastwan.bundle import Bundle, open_bundle
from fastwan.errors import BadInput, SlowerThanBaseline
from fastwan.progress import Progress, Quiet
from fastwan.quality.gpu_state import environment, gpu_state
from fastwan.quality.races import find_races
from fastwan.runtime.device.choice import resolve_device
from fastwan.runtime.device.null import ENQUEUES, Call, NullDevice
from fastwan.runtime.device.platforms import cuda_platform, null_platform
from fastwan.runtime.device.session import Session
from fastwan.runtime.model.samplers import schedule_of
from fastwan.runtime.model.schedule import Schedule

DEFAULT_PROMPT = "A curious raccoon peers through a vibrant field of yellow sunflowers."
COVERS = (
    "text encoding at the prompt's own length, keys and values, {steps} steps, decoding, frames in "
    "pinned host memory; after warm-up, without the time tables, which loading computes, without "
    "drawing noise and without writing a file"
)
REGION_KERNELS = 2
"""Launches of one attention region: the prologue and the attention."""

Report = dict[str, Any]


def bench(
    path: Path,
    *,
    device: str = "auto",
    runs: int = 5,
    warmup: int = 2,
    prompt: str = DEFAULT_PROMPT,
    sampler: str | None = None,
    baseline: Path | None = None,
    limit: float = 0.05,
    progress: Progress | None = None,
) -> Report:
    """Everything ``bench --json`` prints.

    Args:
        device: "auto", "cuda", or "null" for counts alone.
        runs: measured videos, after `warmup` videos that are not.
        baseline: report of an earlier run to compare with.
        limit: share by which a figure may be larger than the baseline's.

    Raises:
        BadInput: no bundle, or a baseline of another kind.
        EnvironmentLacks: "cuda" cannot be used.
        SlowerThanBaseline: names the figures; carries no report.
    """
    if runs < 1 or warmup < 0:
        raise BadInput("at least one run is needed", where="--runs")
    bundle = open_bundle(path)
    schedule = schedule_of(bundle.manifest.sampler_spec(sampler))
    report = counts(bundle, schedule)
    report["times"] = None
    if device == "null":
        report["note"] = "counts of the recording device; there are no times without a GPU"
    elif resolve_device(device).name == "cuda":
        report |= _measure(bundle, schedule, prompt, runs, warmup, progress or Quiet())
    else:
        report["note"] = "no CUDA device is visible: exact counts, no times"
    report["environment"] = environment()
    if baseline is not None:
        compare(report, _read(baseline), limit)
    return report


def counts(bundle: Bundle, schedule: Schedule) -> Report:
    """What one video of a known prompt is made of, from the recording device.

    The loop is everything between the launch and the wait for its end.
    """
    device = NullDevice()
    session = Session(null_platform(bundle, device), bundle, schedule)
    session.load()
    recording = session.recording
    session.prepare(np.zeros(recording.prompt_embeds.shape, np.float32))
    loaded = len(device.calls)
    noise = np.zeros(recording.latents.shape, np.float32)
    session.video([noise] * len(recording.noises))
    video = device.calls[loaded:]
    launched = [call for launch in video for call in launch.graph]
    enqueued: Counter[str] = Counter(call.kind for call in launched if call.kind in ENQUEUES)
    waits = sum(call.kind == "synchronize" for call in (*video, *launched))
    return {
        "bundle": str(bundle.root),
        "model": bundle.manifest.onnx.model.name,
        "shape": bundle.manifest.onnx.model.shape.model_dump(),
        "target": bundle.manifest.target,
        "backend": bundle.manifest.backend,
        "attention": bundle.manifest.attention,
        "sampler": schedule.name,
        "device": "null",
        "note": "",
        "graph_launches": sum(call.kind == "launch" for call in video),
        "enqueues": sum(enqueued.values()),
        "enqueues_by_kind": {kind: enqueued[kind] for kind in ENQUEUES},
        "kernels": _kernels(bundle, launched),
        "allocations_in_loop": sum(call.kind == "allocate" for call in (*video, *launched)),
        # The last one ends the loop.
        "host_syncs_in_loop": waits - 1,
        "bytes_to_host": _copied(launched, "device to host"),
        "bytes_to_device": _copied(launched, "host to device"),
        "device_bytes": session.plan.total,
        "memory": session.plan.to_json(),
        "unshared_arena_bytes": session.plan.unshared,
        "races": len(find_races(device.calls)),
        "covers": COVERS.format(steps=len(schedule.steps)),
        "labels": {
            "counts": "measured on the recording device",
            "kernels": "predicted from the builder's records",
            "device_bytes": "predicted",
            "times": "measured",
        },
    }


def _kernels(bundle: Bundle, calls: Sequence[Call]) -> int | None:
    """Kernels behind the enqueues; None for a bundle without layer records."""
    if "layers.json" not in bundle.manifest.files:
        return None
    layers = bundle.layers
    inside = {n: sum(r.get("kind") != "host" for r in records) for n, records in layers.items()}
    own = {"region": REGION_KERNELS, "combine": 1, "cast": 1}
    return sum(inside[c.name] if c.kind == "engine" else own.get(c.kind, 0) for c in calls)


def _copied(calls: Sequence[Call], direction: str) -> int:
    copies = [call for call in calls if call.kind == "copy" and call.name == direction]
    return sum(end - begin for call in copies for begin, end in call.writes)


def _measure(
    bundle: Bundle, schedule: Schedule, prompt: str, runs: int, warmup: int, progress: Progress
) -> Report:
    from fastwan.runtime.device.components import DeviceComponents
    from fastwan.runtime.model.noise import DEFAULT_SEED, draw, generator_for
    from fastwan.runtime.timings import Timings

    platform = cuda_platform(bundle)
    before = platform.device.free_bytes()
    components = DeviceComponents(bundle, platform)
    begin = time.perf_counter()
    components.load(schedule, text=True, decoder=True)
    load_seconds = time.perf_counter() - begin
    noises = draw(components.latents_shape, schedule, generator_for(None, DEFAULT_SEED))
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
            components.video(embeds, noises, schedule, timings)
        measured.append(timings)
        states.append(gpu_state())
        least = min(least, platform.device.free_bytes())
        progress.advance()
    progress.finish()
    info = platform.device.info
    return {
        "device": info.name,
        "compute_capability": info.compute_capability,
        "driver_cuda": info.driver,
        "prompt": prompt,
        "runs": runs,
        "warmup": warmup,
        "times": summarize(measured[warmup:]),
        "load_seconds": load_seconds,
        "runtime_cache": components.runtime_cache,
        "memory_peak_bytes": before - least,
        "gpu_states": states,
        "eager_reason": components.session(schedule).eager_reason,
    }


def summarize(measured: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Minimum, median and 95th percentile (nearest rank) of each stage, in milliseconds."""
    result = {}
    for name in measured[0]:
        values = sorted(1e3 * timings[name] for timings in measured)
        rank = max(0, -(-95 * len(values) // 100) - 1)
        result[name] = {
            "min_ms": values[0],
            "median_ms": statistics.median(values),
            "p95_ms": values[rank],
        }
    return result


def figures(report: Mapping[str, Any]) -> dict[str, float]:
    """What a baseline is compared by: medians of the stages, and counts where smaller is better."""
    names = (
        "graph_launches", "enqueues", "kernels", "allocations_in_loop", "host_syncs_in_loop",
        "bytes_to_host", "device_bytes", "memory_peak_bytes",
    )  # fmt: skip
    found = {n: float(report[n]) for n in names if isinstance(report.get(n), (int, float))}
    for stage, times in (report.get("times") or {}).items():
        found[f"{stage} median_ms"] = float(times["median_ms"])
    return found


def compare(report: Mapping[str, Any], baseline: Mapping[str, Any], limit: float) -> None:
    """Hold a report against an earlier one.

    Raises:
        BadInput: they are of another device, model, shape, target or sampler.
        SlowerThanBaseline: a figure is larger by more than `limit`.
    """
    for name in ("device", "model", "shape", "target", "sampler"):
        if report.get(name) != baseline.get(name):
            raise BadInput(
                f"baseline has {name} {baseline.get(name)}, this run {report.get(name)}",
                where="--baseline",
                fix="compare runs of one kind",
            )
    before, now = figures(baseline), figures(report)
    worse = [
        f"{name} {now[name]:,.6g} instead of {before[name]:,.6g}"
        for name in before
        if name in now and now[name] > before[name] * (1 + limit)
    ]
    if worse:
        raise SlowerThanBaseline("; ".join(worse), where=f"limit {limit:.0%}")


def render(report: Mapping[str, Any]) -> str:
    """A report as lines for a terminal."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in report["enqueues_by_kind"].items())
    lines = [
        f"{report['bundle']}: {report['device']}, sampler {report['sampler']}",
        f"one video: {report['graph_launches']} graph launch, {report['enqueues']} enqueues "
        f"({kinds}), {report['allocations_in_loop']} allocations, "
        f"{report['host_syncs_in_loop']} waits in the loop, {report['races']} races",
        f"device memory (predicted): {report['device_bytes'] / 1e6:,.1f} MB; "
        f"to the host: {report['bytes_to_host'] / 1e6:,.1f} MB",
    ]
    for stage, times in (report["times"] or {}).items():
        lines.append(
            f"{stage:>10}: median {times['median_ms']:.2f} ms, min {times['min_ms']:.2f}, "
            f"p95 {times['p95_ms']:.2f} (measured)"
        )
    lines.append(f"total covers {report['covers']}" if report["times"] else report["note"])
    return "\n".join(lines)


def _read(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"baseline cannot be read: {error}", where=str(path)) from error
    if not isinstance(loaded, dict):
        raise BadInput("baseline is no report of bench --json", where=str(path))
    return loaded
