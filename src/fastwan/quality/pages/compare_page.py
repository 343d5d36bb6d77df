"""The page of ``compare``."""

from __future__ import annotations

from collections.abc import Sequence

from fastwan.quality.compare.report import CompareReport, NumericComparison, StaticComparison
from fastwan.quality.compare.text import component_rows, figure, parting, patterns
from fastwan.quality.gpus import rates_of
from fastwan.quality.kernels import Kernel
from fastwan.quality.pages.charts import Bar, Line, bars, grouped, lines
from fastwan.quality.pages.document import Block, Document, Section, Table, Tone
from fastwan.quality.pages.drawing import SERIES
from fastwan.quality.pages.parts import (
    facts_of,
    findings_section,
    frames_beside,
    kernel_roofline,
    kernel_time,
)
from fastwan.runtime.model.executor import Array

_MOST_TENSORS = 40


def compare_page(
    report: CompareReport,
    kernels: tuple[Sequence[Kernel], Sequence[Kernel]],
    videos: Sequence[Array] = (),
) -> Document:
    """Two bundles side by side.

    Args:
        kernels: of both bundles.
        videos: frames of the first video by both bundles.
    """
    numeric = report.numeric
    sections = []
    if numeric is not None:
        sections.append(Section("Where the numbers part", _numbers(numeric, report.limit)))
        if numeric.frames:
            sections.append(Section("Frames", _frames(numeric, videos)))
    sections.append(Section("Kernels", _kernels(report.static)))
    sections.append(Section("Components", [_components(report.static)]))
    for name, facts, own in zip("AB", (report.a, report.b), kernels, strict=True):
        shown: list[Block] = [kernel_time(own), kernel_roofline(own, rates_of(facts.target))]
        sections.append(Section(f"Where the time of {name} goes", shown))
    if report.limit is not None and report.findings:
        sections.insert(0, findings_section(report.findings))
    tone: Tone = "plain" if report.limit is None else "good" if report.passed else "bad"
    told = [*facts_of(report.a, "A: "), *facts_of(report.b, "B: ")]
    return Document("compare", tone, _verdict(report), told, sections)


def _verdict(report: CompareReport) -> str:
    numeric = report.numeric
    changed = sum(n for name, n in report.static.counts.items() if name != "same")
    parts = [f"{changed} groups of kernels differ" if changed else "the same kernels"]
    if numeric is not None:
        worst = max((each.velocity or 0 for each in numeric.steps), default=0)
        limit = "" if report.limit is None else f" (limit {report.limit:.3g})"
        parts.append(f"steps differ by up to {worst:.3g}{limit}" if worst else "equal steps")
        ratios = [each.psnr for each in numeric.frames if each.psnr is not None]
        if ratios:
            parts.append(f"frames {min(ratios):.1f} dB apart")
        if numeric.blocks:
            parts.append(parting(numeric))
    return "; ".join(parts)


def _numbers(numeric: NumericComparison, limit: float | None) -> list[Block]:
    first = [e for e in numeric.steps if (e.prompt, e.seed) == (0, numeric.seeds[0])]
    series = [
        Line("velocity, same latents", [each.velocity for each in first]),
        Line("latents, own ways", [each.drift for each in first]),
    ]
    label = "Relative L2 difference in each step of the first video (emulated)"
    places = [f"step {each.step}" for each in first]
    told = f"Played on {numeric.device} with sampler {numeric.sampler}: {numeric.shape}."
    blocks: list[Block] = [told, lines(places, series, "relative L2", label, limit=limit)]
    if numeric.blocks:
        series = [
            Line("hidden states behind it", [each.drift for each in numeric.blocks]),
            Line("what it adds alone", [each.own for each in numeric.blocks]),
        ]
        series = [line for line in series if any(value is not None for value in line.values)]
        label = "Relative L2 difference of each block in the first step (emulated)"
        places = [str(each.block) for each in numeric.blocks]
        blocks.append(lines(places, series, "relative L2", label, across="block", limit=limit))
    if numeric.tensors:
        blocks.append(_tensors(numeric))
    return blocks


def _tensors(numeric: NumericComparison) -> Block:
    names = [each.name for each in numeric.tensors]
    begin = max(0, names.index(numeric.first_tensor) - 3) if numeric.first_tensor in names else 0
    shown = numeric.tensors[begin : begin + _MOST_TENSORS]
    items = [
        Bar(
            each.name,
            each.difference or 0,
            SERIES[1] if each.name == numeric.first_tensor else SERIES[0],
            figure(each.difference),
        )
        for each in shown
    ]
    legend = {SERIES[1]: "the first beyond the limit"} if numeric.first_tensor else None
    label = f"Tensors inside block {numeric.first_block}, in the order of the graph (emulated)"
    return bars(items, "relative L2", label, legend)


def _frames(numeric: NumericComparison, videos: Sequence[Array]) -> list[Block]:
    rows = [
        (
            str(each.prompt), str(each.seed), "equal" if each.psnr is None else f"{each.psnr:.1f}",
            figure(each.ssim), figure(each.lpips), str(each.largest), str(each.worst_frame),
        )
        for each in numeric.frames
    ]  # fmt: skip
    titles = (
        "prompt", "seed", "PSNR, dB", "SSIM", "LPIPS", "largest difference, levels", "worst frame",
    )  # fmt: skip
    blocks: list[Block] = [Table(titles, rows, frozenset(range(7)))]
    if len(videos) == 2:
        a, b = videos
        worst = numeric.frames[0].worst_frame
        blocks.append(frames_beside(a, b, ("A", "B"), sorted({0, len(a) // 2, worst})))
    return blocks


def _kernels(static: StaticComparison) -> list[Block]:
    counts = ", ".join(f"{count} {name}" for name, count in static.counts.items())
    blocks: list[Block] = [f"Groups of kernels that compute the same ONNX nodes: {counts}."]
    pairs = static.block_bytes
    if pairs:
        series = [
            Line(name, [None if pair[side] is None else (pair[side] or 0) / 1e6 for pair in pairs])
            for side, name in enumerate(("A", "B"))
        ]
        label = "Bytes that each block moves in a denoising step (predicted)"
        places = [str(block) for block in range(len(pairs))]
        blocks.append(grouped(places, series, "MB", label, across="block"))
    rows = [
        (each.status, each.nodes, each.where, each.a, each.b, _moved(each.bytes_moved))
        for each in patterns(static.groups)
    ]
    if rows:
        blocks.append(Table(("", "nodes", "in", "A", "B", "MB"), rows, frozenset({5})))
    return blocks


def _moved(sizes: tuple[int, int]) -> str:
    a, b = (f"{size / 1e6:,.2f}" if size else "-" for size in sizes)
    return f"{a} → {b}"


def _components(static: StaticComparison) -> Table:
    rows = [(r.component, r.title, r.a, r.b, r.change) for r in component_rows(static)]
    return Table(("", "", "A", "B", "change"), rows, frozenset({2, 3, 4}))
