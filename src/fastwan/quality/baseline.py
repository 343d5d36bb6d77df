"""A report of ``bench`` held against an earlier one."""

from __future__ import annotations

import math
from pathlib import Path

from pydantic import ValidationError

from fastwan.errors import BadInput, SlowerThanBaseline
from fastwan.quality.bench_report import BenchReport
from fastwan.strict_json import read_json, validated

_COUNTS = (
    "graph_launches", "enqueues", "kernels", "allocations_in_loop", "host_syncs_in_loop",
    "bytes_to_host",
)  # fmt: skip

MAX_LIMIT = 10.0
"""Largest share beyond a baseline that can be asked for; more would let anything pass."""


def check_limit(limit: float) -> None:
    """Refuse a limit that no figure could pass, or that every figure would.

    Raises:
        BadInput: not a number within 0 .. `MAX_LIMIT`.
    """
    if not 0 <= limit <= MAX_LIMIT:
        raise BadInput(
            f"{limit:g} is not within 0 .. {MAX_LIMIT:g}",
            where="--limit",
            fix="a share of the baseline: 0.05 lets a figure be 5 % larger",
        )


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
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        what = f"{first['msg']} in {field!r}" if field else first["msg"]
        raise BadInput(
            f"baseline is no report of bench: {what}", where=str(path), fix=fix
        ) from None


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
        limit: share by which a figure may be larger than the baseline's, see `check_limit`.

    Raises:
        BadInput: they are of another device, model, shape, target or sampler, one has a figure
            that the other lacks, a figure is negative or no finite number, or the limit is none.
        SlowerThanBaseline: a figure is larger by more than `limit`.
    """
    check_limit(limit)
    before, now = _kind_of_run(baseline), _kind_of_run(report)
    for name in now:
        if now[name] != before[name]:
            raise BadInput(
                f"baseline has {name} {before[name]}, this run {now[name]}",
                where="--baseline",
                fix="compare runs of one kind",
            )
    old, new = _sound(baseline, "the baseline"), _sound(report, "this run")
    for name in old.keys() ^ new.keys():
        lacking = "this run" if name in old else "the baseline"
        raise BadInput(
            f"{lacking} has no {name}, which the other has",
            where="--baseline",
            fix="compare runs of one kind",
        )
    worse = [
        f"{name} {new[name]:,.6g} instead of {old[name]:,.6g}"
        for name in old
        if not new[name] <= old[name] * (1 + limit)
    ]
    if worse:
        raise SlowerThanBaseline("; ".join(worse), where=f"limit {limit:.0%}")


def _sound(report: BenchReport, whose: str) -> dict[str, float]:
    """Figures of a report that something can be held against."""
    found = figures(report)
    if report.measurement is not None and not report.measurement.times:
        raise BadInput(f"{whose} measured no stage", where="--baseline")
    for name, value in found.items():
        if not (math.isfinite(value) and value >= 0):
            raise BadInput(f"{name} of {whose} is {value:g}", where="--baseline")
    return found


def _kind_of_run(report: BenchReport) -> dict[str, object]:
    """What two runs must share to be compared."""
    return {
        "device": report.device,
        "model": report.bundle.model,
        "shape": report.bundle.shape,
        "target": report.bundle.target,
        "sampler": report.sampler,
    }
