"""The figures that each stage of the gate holds, by check, and what kind of figure each is."""

from __future__ import annotations

import math
import statistics

from fastwan.quality.bench_report import BenchReport, Measurement
from fastwan.quality.gate.judge import Kind
from fastwan.quality.inspection import ComponentFigures, InspectReport

Collected = dict[str, "int | float | None"]

DIGITS = 4
"""Significant digits of a figure that is no count: what a baseline keeps and a diff shows."""

_COUNTS = (
    "graph_launches", "enqueues", "allocations_in_loop", "host_syncs_in_loop", "bytes_to_host",
    "bytes_to_device",
)  # fmt: skip


def kind_of(stage: str, check: str) -> Kind:
    """What kind of figure a check is."""
    if stage == "static" and check.endswith("quantised_gemm_share"):
        return Kind(better="higher", beyond="wrong")
    if stage == "predicted":
        return Kind(unit="ms", label="predicted", positive=True)
    if "bytes" in check:
        predicted = check.startswith("device_bytes") or check.endswith("bytes_moved")
        return Kind(unit="B", label="predicted" if predicted else "measured")
    if stage == "times":
        return Kind(unit="ms", positive=True)
    return Kind()


def static_figures(report: InspectReport) -> Collected:
    """What a bundle holds, without a figure of the machine that built it."""
    figures: Collected = {}
    for name, part in report.components.items():
        figures |= {f"{name}.{check}": value for check, value in _component(part).items()}
    if report.fallbacks:
        figures["fallbacks.bytes"] = sum(each.bytes for each in report.fallbacks.values())
        figures["fallbacks.scratch_bytes"] = max(
            each.scratch_bytes for each in report.fallbacks.values()
        )
    if report.device_bytes is not None:
        for name, value in report.device_bytes.model_dump().items():
            figures[f"device_bytes.{name}"] = value
    return figures


def _component(part: ComponentFigures) -> Collected:
    figures: Collected = {
        "files": part.files,
        "bytes": part.bytes,
        "kernels": part.kernels,
        "region_nodes": sum(part.regions.values()),
        "scratch_bytes": part.scratch_bytes,
        "weight_bytes": part.weight_bytes,
    }
    if part.linears:
        figures["quantised_gemm_share"] = rounded(part.quantised_gemm_share)
    runs = {"run": part.per_run, "prompt": part.per_prompt, "timestep": part.per_timestep}
    for name, each in runs.items():
        if each is not None:
            figures[f"per_{name}.bytes_moved"] = each.bytes_moved
    return figures


ON_THE_HOST = ("text", "text_kv", "total")
"""Stages whose times are of the host's clock."""


def schedule_figures(report: BenchReport) -> Collected:
    """Counts of one video on the recording device that do not depend on the engines' insides."""
    return {name: getattr(report, name) for name in _COUNTS}


def predicted_figures(report: InspectReport) -> Collected:
    """Predicted milliseconds by stage of a video.

    None where the bundle makes no video; without those that the table has no rates for.
    """
    prediction = report.prediction
    if prediction is None:
        return {}
    stages = {name: stage.predicted_ms for name, stage in prediction.stages.items()}
    figures = {**stages, "step": prediction.step_ms, "video": prediction.video_ms}
    return {name: rounded(value) for name, value in figures.items() if value is not None}


def time_figures(measured: Measurement) -> Collected:
    """Medians by stage in milliseconds, loading apart, and the largest device memory.

    Of an emulation no memory: most of it is what torch keeps for later, and that varies.
    """
    figures: Collected = {name: rounded(times.median_ms) for name, times in measured.times.items()}
    figures["loading"] = rounded(1e3 * measured.load_seconds)
    if not measured.emulated:
        figures["memory_peak_bytes"] = measured.memory_peak_bytes
    return figures


def spread(measured: Measurement) -> Collected:
    """By stage, how far the 95th percentile is from the minimum, as a share of the median.

    Of stages on the GPU's clock: a busy host makes one in twenty of the others take three times as
    long, and their median says as much as it did.
    """
    return {
        name: rounded((times.p95_ms - times.min_ms) / times.median_ms)
        for name, times in measured.times.items()
        if times.median_ms > 0 and name not in ON_THE_HOST
    }


def clocks(measured: Measurement) -> dict[str, int]:
    """Median clocks of the measured videos in MHz; none where NVML cannot be asked."""
    states = [state for state in measured.gpu_states if state is not None]
    figures = {}
    for name in ("sm_mhz", "memory_mhz"):
        values = [getattr(state, name) for state in states if getattr(state, name) is not None]
        if values:
            figures[name] = int(statistics.median(values))
    return figures


def throttling(measured: Measurement) -> tuple[str, ...]:
    """Reasons for lower clocks that were seen during the measurement, in order of the alphabet."""
    states = [state for state in measured.gpu_states if state is not None]
    return tuple(sorted({reason for state in states for reason in state.throttled or ()}))


def rounded(figure: float | None) -> float | None:
    """A figure to `DIGITS` significant digits; None and NaN stay."""
    if figure is None or not math.isfinite(figure):
        return figure
    return float(f"{figure:.{DIGITS}g}")
