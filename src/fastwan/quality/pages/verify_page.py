"""The page of ``verify``."""

from __future__ import annotations

from collections.abc import Sequence

from fastwan.quality.findings import Finding
from fastwan.quality.findings_text import verdict_line
from fastwan.quality.pages.charts import Line, limits, lines
from fastwan.quality.pages.document import Block, Document, Section, Tone
from fastwan.quality.pages.parts import facts_of, findings_section, frames_beside
from fastwan.quality.verify.report import FP4Comparison, VerifyReport
from fastwan.runtime.model.executor import Array


def verify_page(report: VerifyReport, videos: Sequence[Array] = ()) -> Document:
    """The checks of a bundle.

    Args:
        videos: of the unquantised module and of the bundle, where they were made.
    """
    findings = verify_findings(report)
    exact = [each for each in report.checks if each.limit == 0]
    others = [each for each in report.checks if each.limit != 0]
    shown = limits(
        [(each.name, each.value, each.limit) for each in others],
        "Differences as shares of their limits",
    )
    held = f"{sum(each.passed for each in exact)} of {len(exact)} exact checks passed."
    sections = [findings_section(findings), Section("Accuracy", [held, shown])]
    if report.fp4 is not None:
        sections.append(Section("What FP4 changes", _fp4(report.fp4, videos)))
    if report.lora:
        label = "Relative L2 error of the quantised weights by block, with LoRA and without"
        series = [
            Line("without", [each.error_without for each in report.lora]),
            Line("with", [each.error_with for each in report.lora]),
        ]
        places = [str(each.block) for each in report.lora]
        sections.append(Section("LoRA", [lines(places, series, "error", label, across="block")]))
    if report.unchecked:
        told = [f"Not checked: {each}." for each in report.unchecked]
        sections.append(Section("What the device cannot show", told))
    tone: Tone = "good" if report.passed else "bad"
    return Document("verify", tone, verdict_line(findings), facts_of(report.bundle), sections)


def verify_findings(report: VerifyReport) -> list[Finding]:
    """Checks as findings."""
    return [
        Finding(
            stage="verify",
            check=each.name,
            verdict="passed" if each.passed else "wrong",
            value=each.value,
            limit=each.limit,
            text="; ".join(part for part in (each.metric, each.note) if part),
            label=each.label,
        )
        for each in report.checks
    ]


def _fp4(fp4: FP4Comparison, videos: Sequence[Array]) -> list[Block]:
    blocks: list[Block] = []
    if fp4.blocks:
        places = [str(each.block) for each in fp4.blocks]
        series = [Line("FP4 against bf16", [each.fp4 for each in fp4.blocks])]
        label = "What FP4 changes in each block, over the change that the block makes (emulated)"
        blocks.append(lines(places, series, "relative L2", label, across="block"))
    places = [f"step {each.step}" for each in fp4.steps]
    series = [
        Line("FP4 against bf16", [each.fp4 for each in fp4.steps]),
        Line("bundle against the module", [each.to_module for each in fp4.steps]),
    ]
    label = "Relative L2 difference of the velocity in each step (emulated)"
    blocks.append(lines(places, series, "relative L2", label))
    if fp4.psnr is not None and fp4.ssim is not None:
        blocks.append(f"Frames: PSNR {fp4.psnr:.1f} dB, SSIM {fp4.ssim:.4f} (emulated).")
    if len(videos) == 2:
        a, b = videos
        frames = (0, len(a) // 2, len(a) - 1)
        blocks.append(frames_beside(a, b, ("bf16", "FP4"), frames))
    return blocks
