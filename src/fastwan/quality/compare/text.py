"""The report of ``compare`` as tables for a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from rich.console import Group, RenderableType

from fastwan.quality.compare.report import (
    CompareReport,
    KernelFact,
    KernelGroup,
    NumericComparison,
    StaticComparison,
)
from fastwan.quality.findings_text import verdict_line
from fastwan.quality.inspection import ComponentFigures
from fastwan.screen import Grid, Lines

_FIELDS = (
    ("kernels", "kernels", 1, ",d"),
    ("quantised_linears", "linears in format", 1, ",d"),
    ("weight_bytes", "weights read, MB", 1e6, ",.1f"),
    ("scratch_bytes", "scratch, MB", 1e6, ",.1f"),
    ("bytes", "files, MB", 1e6, ",.1f"),
    ("per_run.bytes_moved", "bytes moved in a run, MB", 1e6, ",.1f"),
    ("per_run.predicted_ms", "time of a run, ms (predicted)", 1, ",.3f"),
)
"""Place in `ComponentFigures`, title, divisor and format."""
_NUMBER = re.compile(r"\b(blocks|text_kv)\.\d+\.")


@dataclass
class Pattern:
    """Groups of kernels that differ by the block's number alone."""

    status: str
    nodes: str
    a: str
    b: str
    blocks: list[int] = field(default_factory=list)
    count: int = 0
    bytes_moved: tuple[int, int] = (0, 0)

    @property
    def where(self) -> str:
        """The blocks in words."""
        if not self.blocks:
            return f"{self.count} times" if self.count > 1 else ""
        if len(self.blocks) == 1:
            return f"block {self.blocks[0]}"
        first, last = min(self.blocks), max(self.blocks)
        whole = len(self.blocks) == last - first + 1
        return f"blocks {first} to {last}" if whole else f"{len(self.blocks)} blocks"


def patterns(groups: Sequence[KernelGroup]) -> list[Pattern]:
    """Groups of kernels, those of all blocks in one row."""
    found: dict[tuple[str, ...], Pattern] = {}
    for group in groups:
        sides = _kernels(group.a), _kernels(group.b)
        nodes = _starred(group.nodes[0])
        key = (group.status, group.component, nodes, *sides)
        row = found.setdefault(key, Pattern(group.status, nodes, *sides))
        row.count += 1
        if group.block is not None:
            row.blocks.append(group.block)
        row.bytes_moved = (
            row.bytes_moved[0] + sum(each.bytes_moved for each in group.a),
            row.bytes_moved[1] + sum(each.bytes_moved for each in group.b),
        )
    return list(found.values())


def _kernels(facts: Sequence[KernelFact]) -> str:
    return " + ".join(f"{_short(each)} {each.dtype}" for each in facts) or "-"


def _short(fact: KernelFact) -> str:
    return "gemm" if fact.kind == "gemm" else _starred(fact.name)


def _starred(name: str) -> str:
    return _NUMBER.sub(r"\1.*.", name)


@dataclass(frozen=True)
class Row:
    """A figure of a component in both bundles."""

    component: str
    title: str
    a: str
    b: str
    change: str = ""


def component_rows(static: StaticComparison) -> list[Row]:
    """Figures of the components; those that neither has are left out."""
    rows = []
    for name, change in static.components.items():
        one, two = change.engines
        rows.append(Row(name, "engines", str(one), str(two), _change(one, two)))
        for place, title, divisor, form in _FIELDS:
            a, b = _at(change.a, place), _at(change.b, place)
            if a or b:
                row = Row(name, title, _cell(a, divisor, form), _cell(b, divisor, form))
                rows.append(replace(row, change=_change(a, b)))
    return rows


def _at(figures: ComponentFigures | None, place: str) -> float | None:
    value: Any = figures
    for part in place.split("."):
        value = getattr(value, part, None)
    return None if value is None else cast(float, value)


def _cell(value: float | None, divisor: float, form: str) -> str:
    if value is None:
        return "-"
    return format(value if divisor == 1 else value / divisor, form)


def _change(a: float | None, b: float | None) -> str:
    if a is None or b is None or a == b:
        return ""
    return f"{b / a - 1:+.1%}" if a else f"{b:+,g}"


def render(report: CompareReport) -> RenderableType:
    """A report for a terminal."""
    static = report.static
    counts = ", ".join(f"{count} {name}" for name, count in static.counts.items())
    parts: list[RenderableType] = [
        Lines(
            f"A: {report.a.path}: {_bundle(report, 'a')}",
            f"B: {report.b.path}: {_bundle(report, 'b')}",
        ),
        Grid(("", "", "A", "B", "change"), _changed_rows(static), title="components", names=2),
        Lines(
            f"kernels by the ONNX nodes that they compute: {counts}",
            *map(_line, patterns(static.groups)),
        ),
    ]
    if report.numeric is not None:
        parts += _numeric(report.numeric)
    if report.findings and report.limit is not None:
        parts.append(Lines(verdict_line(report.findings)))
    return Group(*parts)


def _changed_rows(static: StaticComparison) -> list[tuple[str, ...]]:
    rows = [row for row in component_rows(static) if row.change]
    return [(row.component, row.title, row.a, row.b, row.change) for row in rows]


def _line(row: Pattern) -> str:
    moved = " -> ".join(f"{each / 1e6:,.1f}" for each in row.bytes_moved)
    where = f" ({row.where})" if row.where else ""
    return f"{row.status}: {row.nodes}{where}: {row.a} -> {row.b}, {moved} MB"


def _bundle(report: CompareReport, which: str) -> str:
    facts = report.a if which == "a" else report.b
    return f"{facts.model}, {facts.recipe}, attention {facts.attention}, fusion {facts.fusion}"


def _numeric(numeric: NumericComparison) -> list[RenderableType]:
    rows = [
        (
            str(each.prompt),
            str(each.seed),
            f"{each.step} ({each.timestep})",
            figure(each.velocity),
            figure(each.largest),
            figure(each.drift),
        )
        for each in numeric.steps
    ]
    titles = ("prompt", "seed", "step", "velocity", "largest", "latents (own ways)")
    parts: list[RenderableType] = [
        Lines(f"played on {numeric.device}: sampler {numeric.sampler}, {numeric.shape} (emulated)"),
        Grid(titles, rows, title="relative L2 difference of each step", names=3),
    ]
    for each in numeric.frames:
        ratio = "equal" if each.psnr is None else f"{each.psnr:.1f} dB"
        perceived = "" if each.lpips is None else f", LPIPS {each.lpips:.3f}"
        parts.append(
            Lines(
                f"frames of prompt {each.prompt}, seed {each.seed}: PSNR {ratio}, "
                f"SSIM {figure(each.ssim)}{perceived}, largest difference {each.largest} levels, "
                f"most in frame {each.worst_frame} of {each.frames}"
            )
        )
    if numeric.blocks:
        block_rows = [
            (str(each.block), figure(each.drift), figure(each.own)) for each in numeric.blocks
        ]
        heads = ("block", "drift", "it adds alone")
        parts.append(Grid(heads, block_rows, title="blocks in the first step"))
        parts.append(Lines(parting(numeric)))
    return parts


def parting(numeric: NumericComparison) -> str:
    """Where the bundles part, in a sentence."""
    if numeric.first_block is None:
        return "no block is beyond the limit"
    at = f", first in {numeric.first_tensor}" if numeric.first_tensor else ""
    return f"they part in block {numeric.first_block}{at}"


def figure(value: float | None) -> str:
    """A figure in four digits."""
    return "-" if value is None else f"{value:.4g}"
