"""Reports of bench against earlier ones."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastwan.bundle import Bundle
from fastwan.cli import main
from fastwan.config import VideoShape
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
        times={"decode": decode}, load_seconds=1.0, runtime_cache="unused", checked=None,
        kernel_choices=(),
        memory_peak_bytes=100,
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
    more = report.model_copy(update={name: getattr(report, name) + 1})
    with pytest.raises(SlowerThanBaseline, match=f"{name} "):
        compare(more, report, 0.0)
    compare(report, more, 0.0)  # an improvement


@pytest.mark.parametrize(
    ("limit", "good"),
    [
        (0.0, True), (10.0, True), (math.nan, False), (-1e-9, False), (-3.0, False),
        (math.inf, False), (11.0, False),
    ],
)  # fmt: skip
def test_a_limit_that_decides_nothing_is_refused(
    report: BenchReport, limit: float, good: bool
) -> None:
    if good:
        compare(report, report, limit)
        return
    with pytest.raises(BadInput, match="--limit"):
        compare(report, report, limit)


@pytest.mark.parametrize("whose", ["the baseline", "this run"])
@pytest.mark.parametrize(
    "change",
    [
        {"enqueues": -1}, {"enqueues": math.nan}, {"kernels": None}, {"bytes_to_host": math.inf},
        {"measurement": {"times": {}}}, {"measurement": {"memory_peak_bytes": -5}},
        {"measurement": {"times": {"text": StageTimes(min_ms=1, median_ms=1, p95_ms=1)}}},
    ],
)  # fmt: skip
def test_figures_that_are_missing_or_none_are_errors_of_the_gate(
    report: BenchReport, change: dict[str, Any], whose: str
) -> None:
    good = timed(report, 10.0)
    assert good.measurement is not None
    if "measurement" in change:
        measured = good.measurement.model_copy(update=change["measurement"])
        bad = good.model_copy(update={"measurement": measured})
    else:
        bad = good.model_copy(update=change)
    compare(good, good, 0.05)
    with pytest.raises(BadInput):
        compare(*((good, bad) if whose == "the baseline" else (bad, good)), 0.05)


def test_more_device_memory_is_seen(report: BenchReport) -> None:
    more = report.device_bytes.model_copy(update={"total": 2 * report.device_bytes.total})
    with pytest.raises(SlowerThanBaseline, match="device_bytes"):
        compare(report.model_copy(update={"device_bytes": more}), report, 0.05)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"device": "H200"}, "baseline has device null, this run H200"),
        ({"sampler": "dmd"}, "baseline has sampler unipc, this run dmd"),
        ({"bundle": {"attention": "native"}}, "baseline has attention .*, this run native"),
        ({"bundle": {"backend": "tensorrt"}}, "baseline has backend tensorrt-rtx, this run"),
        ({"bundle": {"recipe": "bf16"}}, "baseline has recipe .*, this run bf16"),
        ({"bundle": {"shape": VideoShape(480, 832, 81)}}, "baseline has shape "),
        ({}, None),
    ],
)
def test_runs_of_different_kinds_are_not_compared(
    report: BenchReport, fault: dict[str, Any], message: str | None
) -> None:
    if "bundle" in fault:
        fault = {"bundle": report.bundle.model_copy(update=fault["bundle"])}
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
        ({"schema_version": 1}, "'schema_version'"),
        ({"labels": {}}, None),  # computed anew
        ({"kernels": "40"}, "'kernels'"),
        ({"kernels": True}, "'kernels'"),
        ({"enqueues": -1}, "'enqueues'"),
        ({"enqueues": 1.5}, "'enqueues'"),
        ({"enqueues": int("9" * 400)}, "400 characters"),
        ({"bytes_to_host": math.nan}, "NaN is not JSON"),
        ({"enqueues_by_kind": {"engine": -1}}, "'enqueues_by_kind.engine'"),
        ({"measurement": []}, "'measurement'"),
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


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ({"decode": {"min_ms": 1, "median_ms": 1.5, "p95_ms": 2}}, None),
        ([], "'measurement.times'"),
        ({"decode": []}, "'measurement.times.decode'"),
        ({"decode": {"min_ms": 1, "median_ms": "nan", "p95_ms": 2}}, "median_ms"),
        ({"decode": {"min_ms": 1, "median_ms": -1, "p95_ms": 2}}, "median_ms"),
        ({"decode": {"min_ms": 1, "p95_ms": 2}}, "median_ms"),
    ],
)
def test_measured_times_are_read_strictly(
    report: BenchReport, tmp_path: Path, times: object, message: str | None
) -> None:
    path = tmp_path / "baseline.json"
    fields = json.loads(timed(report, 10.0).to_json())
    fields["measurement"]["times"] = times
    path.write_text(json.dumps(fields))
    if message is None:
        read_baseline(path)
        return
    with pytest.raises(BadInput, match=message):
        read_baseline(path)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@given(data=st.data())
@settings(
    max_examples=200, derandomize=True, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
def test_no_baseline_makes_anything_but_an_error_of_input(
    report: BenchReport, tmp_path: Path, data: st.DataObject
) -> None:
    fields = json.loads(timed(report, 10.0).to_json())
    holder = fields
    key = data.draw(st.sampled_from(sorted(holder)))
    while isinstance(holder[key], dict) and holder[key] and data.draw(st.booleans()):
        holder = holder[key]
        key = data.draw(st.sampled_from(sorted(holder)))
    holder[key] = data.draw(JSON_VALUES)
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(fields))
    with contextlib.suppress(BadInput, SlowerThanBaseline):
        compare(timed(report, 10.0), read_baseline(path), 0.05)


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
    assert f"{report.enqueues} enqueues" in worse.stdout
    printed = CliRunner().invoke(main, [*arguments, "--json"])
    assert printed.exit_code == 5
    assert BenchReport.model_validate_json(printed.stdout) == report
    facts = report.bundle.model_copy(update={"attention": "native"})
    path.write_text(report.model_copy(update={"bundle": facts}).to_json())
    other = CliRunner().invoke(main, arguments)
    assert (other.exit_code, other.stdout) == (2, "")
    assert "baseline has attention native" in other.stderr
    path.write_text(timed(report, 10.0).to_json())
    untimed = CliRunner().invoke(main, arguments)
    assert untimed.exit_code == 2
    assert "no such figure" in untimed.stderr
    path.write_text("nonsense")
    assert CliRunner().invoke(main, arguments).exit_code == 2


@pytest.mark.parametrize(
    "option",
    [
        ("--limit", "nan"), ("--limit", "-3"), ("--limit", "inf"), ("--runs", "0"),
        ("--runs", "-1"), ("--runs", "1000000000000"), ("--warmup", "-1"),
        ("--warmup", "9" * 400), ("--runs", "9" * 5000),
    ],
)  # fmt: skip
def test_numbers_of_the_command_are_refused_before_the_work(
    bundle: Bundle, report: BenchReport, tmp_path: Path, option: tuple[str, str]
) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(report.to_json())
    arguments = ["bench", str(bundle.root), "--device", "null", "--baseline", str(path)]
    good = ["--limit", "0", "--runs", "1", "--warmup", "0"]
    assert CliRunner().invoke(main, [*arguments, *good]).exit_code == 0
    result = CliRunner().invoke(main, [*arguments, *option])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1 or "Usage:" in result.stderr
    assert not result.stdout
