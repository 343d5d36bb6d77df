"""The report of `fastwan.quality.report` as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

_ROWS = (
    ("files", "files", "count"),
    ("bytes", "bytes on disk", "MB"),
    ("kernels", "kernels", "count"),
    ("kinds", "  by kind", "histogram"),
    ("dtypes", "  by dtype", "histogram"),
    ("linears", "targeted linears", "count"),
    ("fp4_linears", "  of them FP4", "count"),
    ("fp4_gemm_share", "FP4 share of GEMMs", "share"),
    ("weight_bytes", "weights read", "MB"),
    ("scratch_bytes", "scratch", "MB"),
    ("bytes_moved", "bytes moved, one run", "MB"),
    ("memory_bound_bytes", "  memory-bound kernels", "MB"),
    ("flops", "operations, one run", "T"),
    ("predicted_ms", "time, one run", "ms"),
    ("floor_ms", "  arithmetic alone", "ms"),
)
_RUNS = {"dit": "one step", "decoder": "one latent frame", "text_encoder": "one prompt"}


def render(report: Mapping[str, Any]) -> RenderableType:
    """Tables of `inspect_bundle`'s report; every figure with how it was got."""
    components: Mapping[str, Mapping[str, Any]] = report["components"]
    table = Table(title=f"{report['model']} for {report['target']}", title_justify="left")
    table.add_column("")
    for name in components:
        table.add_column(f"{name} ({_RUNS[name]})", justify="right")
    table.add_column("")
    for field, title, unit in _ROWS:
        cells = [_format(figures.get(field), unit) for figures in components.values()]
        table.add_row(title, *cells, report["labels"].get(field, "measured"))
    return Group(Text(_headline(report)), table, _prediction(report["prediction"]), _memory(report))


def _headline(report: Mapping[str, Any]) -> str:
    shape = report["shape"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return (
        f"{report['bundle']}: {report['backend']}, attention {report['attention']}, "
        f"recipe {report['recipe']}, {shape['width']}x{shape['height']}x{shape['num_frames']}, "
        f"sampler {report['sampler']} ({versions})"
    )


def _prediction(prediction: Mapping[str, Any]) -> RenderableType:
    if prediction["gpu"] is None:
        return Text("no prediction: no rates are known for this target")
    title = f"predicted on {prediction['gpu']}, rates of {prediction['rates_of']}"
    table = Table(title=title, title_justify="left", caption=f"covers {prediction['covers']}")
    for column in ("", "predicted", "arithmetic alone (floor)", "published"):
        table.add_column(column, justify="right" if column else "left")
    for name in ("step", "video"):
        fields = (f"{name}_ms", f"{name}_floor_ms", f"published_{name}_ms")
        table.add_row(name, *(_format(prediction[field], "ms") for field in fields))
    return table


def _memory(report: Mapping[str, Any]) -> RenderableType:
    memory = report["device_bytes"]
    parts = ", ".join(f"{name} {_format(memory[name], 'MB')}" for name in memory if name != "total")
    return Text(f"device memory (predicted): {_format(memory['total'], 'MB')}: {parts}")


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
