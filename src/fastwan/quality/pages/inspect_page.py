"""The page of ``inspect``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastwan.bundle import Bundle
from fastwan.quality.findings import Finding
from fastwan.quality.gpus import rates_of
from fastwan.quality.inspection import InspectReport
from fastwan.quality.kernels import Kernel, bundle_kernels, by_block
from fastwan.quality.pages.charts import Bar, Line, bars, grouped
from fastwan.quality.pages.document import Block, Document, Section, Table
from fastwan.quality.pages.drawing import SERIES
from fastwan.quality.pages.folder import report_folder
from fastwan.quality.pages.graph import graph_chart, graph_page
from fastwan.quality.pages.parts import facts_of, kernel_roofline, kernel_time
from fastwan.quality.pages.writing import write_report
from fastwan.quality.report_text import component_table


def write_inspection(
    bundle: Bundle,
    made: InspectReport,
    report: Path | None,
    graph: Path | None,
    block: int | None = None,
) -> None:
    """Write the folders that were asked for.

    Args:
        report: for the page of `inspect_page`.
        graph: for the picture of `fastwan.quality.pages.graph.graph_page`.
        block: the one that the pictures unfold.

    Raises:
        BadInput: a folder may not be replaced, or there is no such block.
    """
    place = None if report is None else report_folder(report, [bundle.root])
    drawn = None if graph is None else report_folder(graph, [bundle.root], "--graph")
    kernels, findings = bundle_kernels(bundle), inspect_findings(made)
    if place is not None:
        write_report(place, inspect_page(made, kernels, block), made, findings)
    if drawn is not None:
        write_report(drawn, graph_page(made.bundle, kernels, block), made, findings)


def inspect_page(
    report: InspectReport, kernels: Sequence[Kernel], block: int | None = None
) -> Document:
    """What a bundle holds and costs; nothing is judged but the formats of its linears.

    Args:
        block: the one that is unfolded; by default one that is like most others.

    Raises:
        BadInput: the transformer has no such block.
    """
    lost = lost_linears(report)
    video = report.prediction.video_ms if report.prediction else None
    told = "" if video is None else f"; a video takes {video:,.2f} ms on its target (predicted)"
    linears = sum(part.linears for part in report.components.values())
    kept = (
        f"{linears - lost} of {linears} targeted linears in their format"
        if linears
        else ("no linear is quantised")
    )
    return Document(
        "inspect",
        "bad" if lost else "plain",
        kept + told,
        facts_of(report.bundle),
        [
            Section("Where the time goes", _times(report, kernels)),
            Section("Bytes of each block", _blocks(kernels)),
            Section("Kernel by kernel", [graph_chart(kernels, block)]),
            Section("Components", [_components(report)]),
            Section("Memory", _memory(report)),
        ],
    )


def inspect_findings(report: InspectReport) -> list[Finding]:
    """Targeted linears by component, held to their format."""
    return [
        Finding(
            stage="inspect",
            check=f"{name}.quantised_linears",
            verdict="passed" if part.linears == part.quantised_linears else "wrong",
            value=part.quantised_linears,
            limit=part.linears,
            text="targeted linears that are GEMMs in their format",
        )
        for name, part in report.components.items()
    ]


def lost_linears(report: InspectReport) -> int:
    """Targeted linears that no GEMM of their format computes."""
    return sum(part.linears - part.quantised_linears for part in report.components.values())


def _times(report: InspectReport, kernels: Sequence[Kernel]) -> list[Block]:
    gpu = rates_of(report.bundle.target)
    blocks: list[Block] = []
    prediction = report.prediction
    if prediction is not None and prediction.gpu is not None:
        stages = [
            Bar(name, stage.predicted_ms or 0, SERIES[0], f"{stage.predicted_ms or 0:,.3g} ms")
            for name, stage in prediction.stages.items()
        ]
        label = (
            f"Stages of a video on {prediction.gpu}, rates of {prediction.rates_date} (predicted)"
        )
        blocks.append(bars(stages, "ms", label))
    return [*blocks, kernel_time(kernels), kernel_roofline(kernels, gpu)]


def _blocks(kernels: Sequence[Kernel]) -> list[Block]:
    costs = by_block(kernels)
    if not costs:
        return ["The bundle has no transformer."]
    matrix = [(each.bytes_moved - each.memory_bound_bytes) / 1e6 for each in costs.values()]
    glue = [each.memory_bound_bytes / 1e6 for each in costs.values()]
    series = [Line("GEMMs and attention", matrix), Line("glue between them", glue)]
    label = "Bytes that each block moves in a denoising step (predicted)"
    return [grouped([str(block) for block in costs], series, "MB", label, across="block")]


def _components(report: InspectReport) -> Table:
    titles, rows = component_table(report)
    return Table(titles, rows, frozenset(range(1, len(titles) - 1)))


def _memory(report: InspectReport) -> list[Block]:
    if report.device_bytes is None:
        return [report.note]
    sizes = report.device_bytes.model_dump(exclude={"total"})
    items = [
        Bar(name.replace("_", " "), size / 1e6, SERIES[3], f"{size / 1e6:,.1f} MB")
        for name, size in sizes.items()
    ]
    label = f"Device memory of a video, {report.device_bytes.total / 1e6:,.1f} MB (predicted)"
    return [bars(items, "MB", label), *([report.note] if report.note else [])]
