"""A report of ``bench`` held against an earlier one."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from fastwan.errors import BadInput, SlowerThanBaseline
from fastwan.quality.bench_report import BenchReport
from fastwan.strict_json import read_json

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
        return BenchReport.model_validate(read_json(path))
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
    """What reports are compared by: medians of the stages, and counts where smaller is better."""
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
        limit: share by which a figure may be larger than the baseline's.

    Raises:
        BadInput: they are of another device, model, shape, target or sampler.
        SlowerThanBaseline: a figure is larger by more than `limit`.
    """
    before, now = _kind_of_run(baseline), _kind_of_run(report)
    for name in now:
        if now[name] != before[name]:
            raise BadInput(
                f"baseline has {name} {before[name]}, this run {now[name]}",
                where="--baseline",
                fix="compare runs of one kind",
            )
    old, new = figures(baseline), figures(report)
    worse = [
        f"{name} {new[name]:,.6g} instead of {old[name]:,.6g}"
        for name in old
        if name in new and new[name] > old[name] * (1 + limit)
    ]
    if worse:
        raise SlowerThanBaseline("; ".join(worse), where=f"limit {limit:.0%}")


def _kind_of_run(report: BenchReport) -> dict[str, object]:
    """What two runs must share to be compared."""
    return {
        "device": report.device,
        "model": report.bundle.model,
        "shape": report.bundle.shape,
        "target": report.bundle.target,
        "sampler": report.sampler,
    }
