"""The report of ``inspect`` as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType

from fastwan.quality.inspection import (
    ComponentFigures,
    FallbackFigures,
    InspectReport,
    Prediction,
)
from fastwan.runtime.recording.memory_plan import DeviceBytes
from fastwan.schema import labels_of
from fastwan.screen import Grid, Lines
from fastwan.shapes import shape_text

_ROWS = (
    ("files", "files", "count"),
    ("bytes", "bytes on disk", "MB"),
    ("kernels", "kernels", "count"),
    ("kinds", "  by kind", "histogram"),
    ("dtypes", "  by dtype", "histogram"),
    ("regions", "own nodes between", "histogram"),
    ("linears", "targeted linears", "count"),
    ("quantised_linears", "  of them in format", "count"),
    ("quantised_gemm_share", "share of GEMMs in it", "share"),
    ("weight_bytes", "weights read", "MB"),
    ("scratch_bytes", "scratch", "MB"),
    ("per_run.bytes_moved", "bytes moved, one run", "MB"),
    ("per_run.memory_bound_bytes", "  memory-bound kernels", "MB"),
    ("per_run.flops", "operations, one run", "T"),
    ("per_run.predicted_ms", "time, one run", "ms"),
    ("per_run.floor_ms", "  arithmetic alone", "ms"),
)
"""Place in `ComponentFigures`, title and unit."""
_RUNS = {"dit": "one step", "decoder": "one latent frame", "text_encoder": "one prompt"}


def render(report: InspectReport) -> RenderableType:
    """Tables of a report; every figure with how it was got."""
    title = f"{report.bundle.model} for {report.bundle.target}"
    titles, rows = component_table(report)
    figures = range(1, len(titles) - 1)
    table = Grid(titles, rows, title=title, right=figures, labelled=True)
    parts: list[RenderableType] = [Lines(_headline(report)), table]
    if report.prediction is not None:
        parts += _prediction(report.prediction)
    if report.fallbacks:
        parts.append(_fallbacks(report.fallbacks))
    if report.device_bytes is not None:
        parts.append(_memory(report.device_bytes))
    if report.shapes:
        parts.append(Lines(shapes_text(report.shapes)))
    if report.note:
        parts.append(Lines(report.note))
    return Group(*parts)


def shapes_text(shapes: Mapping[str, int]) -> str:
    """Shapes of a bundle and what each has for itself, as one line."""
    own = ", ".join(f"{shape} {size / 1e6:.1f} MB" for shape, size in shapes.items())
    return f"shapes, and the files that no other one reads (measured): {own}"


def component_table(report: InspectReport) -> tuple[list[str], list[tuple[str, ...]]]:
    """Titles and rows of what each component holds; how a figure was got stands last."""
    titles = ["", *(f"{name} ({_RUNS[name]})" for name in report.components), ""]
    labels = dict(labels_of(ComponentFigures))
    rows = []
    for place, row, unit in _ROWS:
        cells = (_format(_at(figures, place), unit) for figures in report.components.values())
        rows.append((row, *cells, labels[place]))
    return titles, rows


def _at(figures: ComponentFigures, place: str) -> Any:
    value: Any = figures
    for name in place.split("."):
        value = getattr(value, name)
    return value


def _headline(report: InspectReport) -> str:
    bundle = report.bundle
    versions = ", ".join(f"{name} {version}" for name, version in bundle.versions.items())
    return (
        f"{bundle.path}: {bundle.backend}, attention {bundle.attention}, "
        f"fusion {bundle.fusion}, weights {bundle.weights}, recipe {bundle.recipe}, "
        f"{shape_text(bundle.shape)}, "
        f"sampler {bundle.sampler} ({versions})"
    )


def _prediction(prediction: Prediction) -> list[RenderableType]:
    if prediction.gpu is None:
        return [Lines("no prediction: no rates are known for this target")]
    rows = []
    for name, stage in prediction.stages.items():
        times = (_format(each, "ms") for each in (stage.predicted_ms, None, stage.floor_ms))
        rows.append((name, *times, ""))
    means = {
        "step (mean)": (
            prediction.step_ms, prediction.sober_step_ms, prediction.step_floor_ms,
            prediction.published_step_ms,
        ),
        "video": (
            prediction.video_ms, prediction.sober_video_ms, prediction.video_floor_ms,
            prediction.published_video_ms,
        ),
    }  # fmt: skip
    for name, figures in means.items():
        rows.append((name, *(_format(figure, "ms") for figure in figures)))
    titles = ("", "at peak rates", "at attained rates", "arithmetic alone (floor)", "published")
    title = f"predicted on {prediction.gpu}, rates of {prediction.rates_date}"
    grid = Grid(titles, rows, title=title, right=range(1, len(titles)))
    return [grid, Lines(f"covers {prediction.covers}")]


def _fallbacks(fallbacks: Mapping[str, FallbackFigures]) -> RenderableType:
    """What each fallback would be played for, and how much longer a step would take (predicted)."""
    kinds: dict[str, list[FallbackFigures]] = {}
    for each in fallbacks.values():
        kinds.setdefault(each.kind, []).append(each)
    parts = []
    for kind, figures in kinds.items():
        more = [
            each.nodes * (each.predicted_ms - each.node_ms)
            for each in figures
            if each.predicted_ms is not None and each.node_ms is not None
        ]
        longer = f", {sum(more):+,.2f} ms a step (predicted)" if len(more) == len(figures) else ""
        nodes = sum(each.nodes for each in figures)
        parts.append(f"{kind} ({nodes} node{'s' if nodes > 1 else ''}{longer})")
    return Lines(f"not played unless a GPU calls for it: fallbacks of {'; '.join(parts)}")


def _memory(memory: DeviceBytes) -> RenderableType:
    sizes = memory.model_dump(exclude={"total"})
    parts = ", ".join(f"{name} {_format(size, 'MB')}" for name, size in sizes.items())
    return Lines(f"device memory (predicted): {_format(memory.total, 'MB')}: {parts}")


def _format(value: Any, unit: str) -> str:
    if value is None:
        return "-"
    if unit == "histogram":
        return " ".join(f"{name}:{count}" for name, count in sorted(value.items()))
    if unit == "share":
        return f"{value:.0%}"
    if unit == "MB":
        return f"{value / 1e6:,.1f} MB"
    if unit == "T":
        return f"{value / 1e12:,.2f} T"
    if unit == "ms":
        return f"{value:,.2f} ms"
    return f"{value:,}"
