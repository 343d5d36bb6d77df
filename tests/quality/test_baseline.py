"""Reports of bench against earlier ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from fastwan.bundle import Bundle
from fastwan.cli import main
from fastwan.errors import BadInput, SlowerThanBaseline
from fastwan.quality.baseline import compare, figures, read_baseline
from fastwan.quality.bench import bench
from fastwan.quality.bench_report import BenchReport, Measurement, StageTimes
from fastwan.quality.report import inspect_bundle

pytestmark = pytest.mark.usefixtures("constants")


@pytest.fixture
def bundle(make_bundle: Callable[..., Bundle]) -> Bundle:
    return make_bundle()


@pytest.fixture
def report(bundle: Bundle) -> BenchReport:
    return bench(bundle.root, device="null")


def timed(report: BenchReport, median_ms: float) -> BenchReport:
    """The report with a measured decoder."""
    decode = StageTimes(min_ms=9.0, median_ms=median_ms, p95_ms=11.0)
    measured = Measurement(
        compute_capability=120, driver_cuda="13.0", prompt="a", runs=1, warmup=0,
        times={"decode": decode}, load_seconds=1.0, runtime_cache="unused", memory_peak_bytes=100,
        gpu_states=(None,), eager_reason="",
    )  # fmt: skip
    return report.model_copy(update={"measurement": measured})


def test_bench_and_inspect_count_the_same_video(bundle: Bundle, report: BenchReport) -> None:
    prediction = inspect_bundle(bundle).prediction
    assert prediction is not None
    launched = [prediction.stages[name] for name in ("step_0", "step_1", "step_2", "decode")]
    assert report.kernels == sum(stage.kernels for stage in launched)
    assert report.enqueues == sum(stage.enqueues for stage in launched)
    assert report.device_bytes == inspect_bundle(bundle).device_bytes


def test_a_baseline_is_held_stage_by_stage(report: BenchReport) -> None:
    baseline = timed(report, 10.0)
    assert figures(baseline)["decode median_ms"] == 10.0
    compare(timed(report, 10.5), baseline, 0.05)
    with pytest.raises(SlowerThanBaseline, match=r"decode median_ms 10\.51 instead of 10"):
        compare(timed(report, 10.51), baseline, 0.05)


@pytest.mark.parametrize(
    "name",
    ["graph_launches", "enqueues", "kernels", "allocations_in_loop", "host_syncs_in_loop",
     "bytes_to_host"],
)  # fmt: skip
def test_a_count_that_grows_is_seen(report: BenchReport, name: str) -> None:
    compare(report, report, 0.0)
    fewer = report.model_copy(update={name: getattr(report, name) - 1})
    with pytest.raises(SlowerThanBaseline, match=f"{name} "):
        compare(report, fewer, 0.0)
    compare(fewer, report, 0.0)  # an improvement


def test_more_device_memory_is_seen(report: BenchReport) -> None:
    more = report.device_bytes.model_copy(update={"total": 2 * report.device_bytes.total})
    with pytest.raises(SlowerThanBaseline, match="device_bytes"):
        compare(report.model_copy(update={"device_bytes": more}), report, 0.05)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"device": "H200"}, "baseline has device null, this run H200"),
        ({"sampler": "dmd"}, "baseline has sampler unipc, this run dmd"),
        ({}, None),
    ],
)
def test_runs_of_different_kinds_are_not_compared(
    report: BenchReport, fault: dict[str, str], message: str | None
) -> None:
    other = report.model_copy(update=fault)
    if message is None:
        compare(other, report, 0.05)
        return
    with pytest.raises(BadInput, match=message):
        compare(other, report, 0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"kernels": "many"}, "'kernels'"),
        ({"surprise": 1}, "'surprise'"),
        ({"kind": "inspect"}, "'kind'"),
        ({"schema_version": 2}, "'schema_version'"),
        ({"labels": {}}, None),  # computed anew
    ],
)
def test_a_baseline_is_read_strictly(
    report: BenchReport, tmp_path: Path, change: dict[str, object], message: str | None
) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps({**json.loads(report.to_json()), **change}))
    if message is None:
        assert read_baseline(path) == report
        return
    with pytest.raises(BadInput, match=message):
        read_baseline(path)


def test_a_baseline_that_is_no_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        read_baseline(tmp_path / "missing.json")
    (tmp_path / "text").write_text("nonsense")
    with pytest.raises(BadInput, match="no report of bench"):
        read_baseline(tmp_path / "text")


def test_the_command_exits_5_beyond_a_baseline(
    bundle: Bundle, report: BenchReport, tmp_path: Path
) -> None:
    path = tmp_path / "baseline.json"
    arguments = ["bench", str(bundle.root), "--device", "null", "--baseline", str(path)]
    path.write_text(report.to_json())
    assert CliRunner().invoke(main, arguments).exit_code == 0
    path.write_text(report.model_copy(update={"enqueues": report.enqueues - 10}).to_json())
    worse = CliRunner().invoke(main, arguments)
    assert worse.exit_code == 5
    assert f"enqueues {report.enqueues} instead of {report.enqueues - 10}" in worse.stderr
    path.write_text("nonsense")
    assert CliRunner().invoke(main, arguments).exit_code == 2
