"""The stage ``times``: medians of videos that were timed on a GPU, loading apart."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from math import isfinite

from fastwan.quality.bench_report import Measurement
from fastwan.quality.findings import Finding, Verdict
from fastwan.quality.gate.cohort import bundle_cohort, differing, gpu_cohort
from fastwan.quality.gate.context import Context
from fastwan.quality.gate.figures import (
    Collected,
    clocks,
    kind_of,
    spread,
    throttling,
    time_figures,
)
from fastwan.quality.gate.history import HistoryRecord, rolling_median
from fastwan.quality.gate.judge import judge
from fastwan.quality.gate.limits import limit_of
from fastwan.runtime.device.choice import resolve_device

TIMES = "times"

USUAL = ("power cap",)
"""Reasons for lower clocks that a loaded GPU has for good; its clocks are held beside them."""


def times(context: Context) -> list[Finding]:
    """Time videos and hold the medians against the baseline, or the rolling median of a history.

    Nothing is compared with a run on another GPU, driver or clock, under throttling or with a wide
    spread: these findings are ``refused``, and the figures skipped.

    Raises:
        EnvironmentLacks: the stage or its device was asked for by name without a GPU that can run
            the engines.
    """
    if reason := _not_asked(context):
        return [_finding("video", "skipped", reason)]
    report = context.measure()
    measured = report.measurement
    assert measured is not None
    context.gpu, context.clocks = gpu_cohort(report), clocks(measured)
    steady = [*_cohort(context), *_throttling(measured), *_spread(context, measured)]
    if any(finding.failed for finding in steady):
        return [*steady, _finding("video", "skipped", "nothing sound was measured to compare")]
    held = _held(context, time_figures(measured))
    context.measured = _record(context, passed=not any(finding.failed for finding in held))
    if measured.emulated:
        held = [finding.model_copy(update={"label": "emulated"}) for finding in held]
    return steady + held


def _not_asked(context: Context) -> str:
    """Why nothing is timed that was not asked for by name; empty where it was, or can be had."""
    if context.device != "auto" or TIMES in context.asked:
        return ""
    if resolve_device("auto").name != "cuda":
        return "no CUDA device is visible"
    if context.update or context.baseline is None:
        return ""
    if not context.baseline.figures(TIMES):
        return "the baseline has no times of a GPU"
    if context.baseline.gpu.get("device") == "emulated":
        return "the baseline's times are emulated: --device emulated"
    return ""


def _held(context: Context, figures: Collected) -> list[Finding]:
    """Each figure against the rolling median, where there is one, and that against the baseline."""
    findings = context.hold(TIMES, figures)
    if context.update:
        return findings
    rolling = _rolling(context)
    against = {} if context.baseline is None else context.baseline.figures(TIMES)
    held = []
    for finding in findings:
        check, median = finding.check, rolling.get(finding.check)
        if median is None or check not in against:
            held.append(finding)
            continue
        limit, kind = limit_of(context.limits, TIMES, check), kind_of(TIMES, check)
        now = judge(TIMES, check, figures.get(check), median, limit, kind)
        text = now.text.replace("the baseline", "the history") or "against the history's median"
        held.append(now.model_copy(update={"text": text}))
        held.append(judge(TIMES, f"drift.{check}", median, against[check], limit, kind))
    return held


def _rolling(context: Context) -> dict[str, float]:
    """Medians of the history's records of this cohort, at these clocks."""
    records = [
        record for record in context.history or () if not _other_clocks(context, record.clocks)
    ]
    return rolling_median(records, {**bundle_cohort(context.facts), **context.gpu})


def _cohort(context: Context) -> list[Finding]:
    """Another GPU or driver than the baseline's, or other clocks."""
    baseline = context.baseline
    if baseline is None or context.update or not baseline.figures(TIMES):
        return []
    differences = differing(baseline.gpu, context.gpu)
    differences |= _other_clocks(context, baseline.clocks)
    return [_finding(f"cohort.{key}", "refused", said) for key, said in differences.items()]


def _other_clocks(context: Context, before: Mapping[str, int]) -> dict[str, str]:
    """Clocks that are further from those of an earlier run than their limit, in words by name."""
    return {
        name: f"baseline {before[name]} MHz, this run {now} MHz"
        for name, now in context.clocks.items()
        if name in before
        and abs(now - before[name])
        > limit_of(context.limits, TIMES, f"clocks.{name}").margin(before[name])
    }


def _throttling(measured: Measurement) -> list[Finding]:
    seen = throttling(measured)
    slowed = [reason for reason in seen if reason not in USUAL]
    if slowed:
        text = f"the GPU was slowed by {', '.join(slowed)}: let it cool and run again"
        return [_finding("throttling", "refused", text)]
    return [_finding("throttling", "passed", f"seen: {', '.join(seen) or 'none'}")]


def _spread(context: Context, measured: Measurement) -> list[Finding]:
    """How far a stage's times are apart, against a limit of its own.

    Less than the amount that the stage may be worse by hides nothing that is looked for.
    """
    findings = []
    for name, share in spread(measured).items():
        limit = limit_of(context.limits, TIMES, f"spread.{name}").absolute
        times = measured.times[name]
        small = times.p95_ms - times.min_ms <= limit_of(context.limits, TIMES, name).absolute
        noisy = share is None or not (share <= limit or small)
        text = "(p95 - min) / median" + (": too noisy, take more --runs" if noisy else "")
        finding = _finding(f"spread.{name}", "refused" if noisy else "passed", text)
        findings.append(finding.model_copy(update={"value": share, "limit": limit}))
    return findings


def _record(context: Context, *, passed: bool) -> HistoryRecord:
    figures = context.collected[TIMES]
    return HistoryRecord(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        tool=context.facts.versions["fastwan-export"],
        cohort={**bundle_cohort(context.facts), **context.gpu},
        clocks=context.clocks,
        passed=passed,
        figures={name: value for name, value in figures.items() if value and isfinite(value)},
    )


def _finding(check: str, verdict: Verdict, text: str) -> Finding:
    return Finding(stage=TIMES, check=check, verdict=verdict, text=text)
