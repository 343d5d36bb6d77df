"""A report of ``bench`` held against an earlier one."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from fastwan.errors import BadInput, SlowerThanBaseline
from fastwan.quality.bench_report import BenchReport
from fastwan.quality.findings import Finding
from fastwan.quality.gate.judge import judge
from fastwan.quality.gate.limits import Limit, check_share
from fastwan.strict_json import first_fault, read_json, validated

_COUNTS = (
    "graph_launches", "enqueues", "kernels", "allocations_in_loop", "host_syncs_in_loop",
    "bytes_to_host",
)  # fmt: skip


def read_baseline(path: Path) -> BenchReport:
    """Read an earlier report.

    Raises:
        BadInput: no report of ``bench --json`` of this version is there.
    """
    fix = "make it with bench --json of this version"
    try:
        return validated(BenchReport, read_json(path))
    except BadInput as error:
        what = f"baseline is no report of bench: {error.what}"
        raise BadInput(what, where=str(path), fix=fix) from None
    except ValidationError as error:
        what = f"baseline is no report of bench: {first_fault(error)}"
        raise BadInput(what, where=str(path), fix=fix) from None


def figures(report: BenchReport) -> dict[str, float]:
    """What reports are compared by: medians of the stages, and counts where smaller is better.

    A count that a report does not have is left out.
    """
    counts = {name: getattr(report, name) for name in _COUNTS}
    counts["device_bytes"] = report.device_bytes.total
    times = {}
    if report.measurement is not None:
        counts["memory_peak_bytes"] = report.measurement.memory_peak_bytes
        stages = report.measurement.times.items()
        times = {f"{stage} median_ms": each.median_ms for stage, each in stages}
    return {**{n: float(count) for n, count in counts.items() if count is not None}, **times}


def compare(report: BenchReport, baseline: BenchReport, limit: float) -> None:
    """Hold a report against an earlier one.

    Args:
        limit: share by which a figure may be larger than the baseline's, see `check_share`.

    Raises:
        BadInput: they are of another device or bundle, see `require_same_bundle`, one has a figure
            that the other lacks, a figure is negative or no finite number, or the limit is none.
        SlowerThanBaseline: a figure is larger by more than `limit`.
    """
    check_share(limit)
    require_same_bundle(report, baseline)
    _require_same("device", report.device, baseline.device)
    for each, whose in ((baseline, "the baseline"), (report, "this run")):
        if each.measurement is not None and not each.measurement.times:
            raise BadInput(f"{whose} measured no stage", where="--baseline")
    old, new = figures(baseline), figures(report)
    share = Limit(relative=limit)
    findings = [
        judge("bench", name, new.get(name), old.get(name), share)
        for name in sorted(old.keys() | new.keys())
    ]
    for finding in findings:
        if finding.verdict in ("wrong", "refused"):
            raise _unsound(finding)
    worse = [
        f"{each.check} {each.value:,.6g} instead of {each.baseline:,.6g}"
        for each in findings
        if each.verdict == "worse"
    ]
    if worse:
        raise SlowerThanBaseline("; ".join(worse), where=f"limit {limit:.0%}")


def _unsound(finding: Finding) -> BadInput:
    """A figure that one of the reports lacks, or that is none."""
    whose = "this run" if finding.verdict == "wrong" else "the baseline"
    return BadInput(
        f"{finding.check} of {whose}: {finding.text}",
        where="--baseline",
        fix="compare runs of one kind",
    )


def require_same_bundle(report: BenchReport, baseline: BenchReport) -> None:
    """Refuse a baseline of another kind of bundle, which can be told before anything is measured.

    Raises:
        BadInput: names the first difference.
    """
    for name in ("model", "recipe", "shape", "target", "backend", "attention"):
        _require_same(name, getattr(report.bundle, name), getattr(baseline.bundle, name))
    _require_same("sampler", report.sampler, baseline.sampler)


def _require_same(name: str, now: object, before: object) -> None:
    if now != before:
        raise BadInput(
            f"baseline has {name} {before}, this run {now}",
            where="--baseline",
            fix="compare runs of one kind",
        )
