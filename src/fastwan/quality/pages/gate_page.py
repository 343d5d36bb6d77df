"""The page of ``gate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastwan.bundle import open_bundle
from fastwan.errors import FastWanError
from fastwan.outputs import OutputFolder
from fastwan.quality.findings import Finding, GateReport
from fastwan.quality.findings_text import verdict_line, with_unit
from fastwan.quality.gate.history import HistoryRecord, read_history
from fastwan.quality.kernels import Kernel, bundle_kernels
from fastwan.quality.pages.charts import Bar, Line, changes, grouped, limits, lines
from fastwan.quality.pages.document import Block, Document, Section, Tone
from fastwan.quality.pages.drawing import BAD, GOOD, SERIES
from fastwan.quality.pages.parts import facts_of, findings_section, kernel_time
from fastwan.quality.pages.writing import write_report

MOST_RECORDS = 40
"""Of a history that a chart shows, the last ones."""
_MOST_CHANGES = 30


def gate_page(
    report: GateReport, history: Sequence[HistoryRecord] = (), kernels: Sequence[Kernel] = ()
) -> Document:
    """The stages of a gate.

    Args:
        history: records of a file; those of this run's cohort are shown.
        kernels: of the bundle; empty where it could not be read.
    """
    failed = report.exit_code != 0
    tone: Tone = "bad" if failed else "good"
    told = [(name, value) for name, value in report.cohort.items() if name in ("gpu", "driver")]
    facts = [*facts_of(report.bundle), *told, ("baseline", report.baseline)]
    if report.rewritten:
        facts.append(("baseline was", "written from this run"))
    elif report.advice:
        facts.append(("to write it anew", report.advice))
    sections = [
        findings_section(report.findings),
        Section("Against the baseline", _against(report.findings)),
    ]
    accuracy = [each for each in report.findings if each.stage in ("verify", "goldens")]
    if accuracy:
        sections.append(Section("Accuracy", _accuracy(accuracy)))
    records = of_cohort(history, report)
    if records:
        sections.append(Section("History of the cohort", [_history(records)]))
    if kernels:
        sections.append(Section("Where the time goes", [kernel_time(kernels)]))
    return Document("gate", tone, verdict_line(report.findings), facts, sections)


def write_gate(
    place: OutputFolder,
    report: GateReport,
    bundle: Path,
    history: Path | None,
    shape: str | None = None,
) -> None:
    """Write the report of a gate, whatever it found: a damaged bundle has no kernels to show.

    Raises:
        BadInput: the page is too large, or the history cannot be read.
    """
    records = [] if history is None else read_history(history)
    try:
        kernels = bundle_kernels(open_bundle(bundle, shape=shape))
    except FastWanError:
        kernels = []
    write_report(place, gate_page(report, records, kernels), report, report.findings)


def of_cohort(history: Sequence[HistoryRecord], report: GateReport) -> list[HistoryRecord]:
    """The last records of the report's cohort; of any GPU where the run had none."""
    return [
        record
        for record in history
        if all(record.cohort.get(key) == value for key, value in report.cohort.items())
    ][-MOST_RECORDS:]


def _against(findings: Sequence[Finding]) -> list[Block]:
    """Changes of figures, and times beside the baseline's."""
    held = [each for each in findings if each.value is not None and each.baseline is not None]
    blocks: list[Block] = []
    moved = [each for each in held if each.baseline and each.value != each.baseline]
    if moved:
        ordered = sorted(moved, key=lambda each: -abs(_change(each)))[:_MOST_CHANGES]
        items = [
            Bar(
                f"{each.stage} {each.check}",
                _change(each),
                BAD if each.failed else GOOD if each.verdict == "improved" else SERIES[0],
                f"{_change(each):+.1%}: {_shown(each)}",
            )
            for each in ordered
        ]
        more = f", the largest {_MOST_CHANGES} of {len(moved)}" if len(moved) > len(items) else ""
        legend = {BAD: "failed", GOOD: "improved", SERIES[0]: "within its limit"}
        blocks.append(changes(items, f"Figures that differ from the baseline's{more}", legend))
    elif held:
        blocks.append(f"None of {len(held)} figures differs from the baseline's.")
    else:
        blocks.append("No figure was compared with the baseline's.")
    for stage in ("predicted", "times"):
        # Loading takes as long as many videos, and a drift is told of figures that are there.
        times = [
            each for each in held
            if each.stage == stage and each.unit == "ms"
            and each.check != "loading" and not each.check.startswith("drift.")
        ]  # fmt: skip
        if times:
            series = [
                Line("baseline", [each.baseline for each in times]),
                Line("this run", [each.value for each in times]),
            ]
            label = f"Stages of a video beside the baseline's ({times[0].label})"
            blocks.append(grouped([each.check for each in times], series, "ms", label))
    return blocks


def _change(finding: Finding) -> float:
    assert finding.value is not None
    assert finding.baseline
    return finding.value / finding.baseline - 1


def _shown(finding: Finding) -> str:
    assert finding.value is not None
    assert finding.baseline is not None
    return f"{with_unit(finding.baseline, '')} → {with_unit(finding.value, finding.unit)}"


def _accuracy(findings: Sequence[Finding]) -> list[Block]:
    exact = [each for each in findings if each.limit == 0]
    others = [(each.check, each.value, each.limit) for each in findings if each.limit]
    good = sum(not each.failed for each in exact)
    blocks: list[Block] = []
    if exact:
        blocks.append(f"{good} of {len(exact)} exact checks passed.")
    if others:
        blocks.append(limits(others, "Differences as shares of their limits"))
    return blocks


def _history(records: Sequence[HistoryRecord]) -> Block:
    last = records[-1].figures
    names = [name for name in last if name != "loading" and "bytes" not in name]
    names = sorted(names, key=lambda name: -last[name])[: len(SERIES)]
    series = [Line(name, [each.figures.get(name) for each in records]) for name in names]
    kind = "emulated" if records[-1].cohort.get("device") == "emulated" else "measured"
    label = f"Times of the last {len(records)} runs of this cohort ({kind})"
    return lines([each.time[:10] for each in records], series, "ms", label)
