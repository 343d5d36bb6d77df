"""What counts as passed."""

from __future__ import annotations

import io
import json
import math

import pytest

from fastwan.config import VideoShape
from fastwan.errors import BadInput, EnvironmentLacks
from fastwan.quality.verify.report import (
    Check,
    Planned,
    VerifyReport,
    not_run,
    render,
    run_planned,
)
from fastwan.schema import BundleFacts


def report_of(*checks: Check) -> VerifyReport:
    facts = BundleFacts(
        path="bundle", model="tiny", recipe="nvfp4",
        shape=VideoShape(16, 16, 1), target="rtx5090", backend="tensorrt-rtx",
        attention="native", fusion="none", weights="inline", sampler="unipc", versions={},
    )  # fmt: skip
    return VerifyReport(bundle=facts, checks=checks)


@pytest.mark.parametrize(
    ("value", "limit", "passed"),
    [
        (0.0, 0.0, True),
        (1.0, 1.0, True),
        (1.1, 1.0, False),
        (None, 1.0, False),
        (math.nan, 1.0, False),
        (0.0, math.nan, False),
        (0.0, math.inf, False),
        (math.inf, math.inf, False),
        (-1.0, 0.0, False),
        (-2.0, -1.0, False),
        (0.0, -1.0, False),
    ],
)
def test_a_check_passes_within_a_finite_limit(
    value: float | None, limit: float, passed: bool
) -> None:
    check = Check(name="name", metric="metric", value=value, limit=limit)
    assert check.passed is passed
    printed = json.loads(report_of(check).to_json())
    assert (printed["passed"], printed["checks"][0]["passed"]) == (passed, passed)


def test_a_verdict_cannot_be_forged() -> None:
    bad = report_of(Check(name="a", metric="m", value=1.0, limit=0.0))
    printed = json.loads(bad.to_json())
    forged = {**printed, "passed": True, "checks": [{**printed["checks"][0], "passed": True}]}
    read = VerifyReport.model_validate(forged)
    assert read == bad
    assert not read.passed


def test_a_report_needs_checks_and_all_of_them() -> None:
    good, bad = (
        Check(name="a", metric="m", value=0.0, limit=0.0),
        Check(name="b", metric="m", value=1.0, limit=0.0),
    )
    assert report_of(good).passed
    assert not report_of(good, bad).passed
    assert not report_of().passed


def test_what_a_function_does_not_deliver_has_failed() -> None:
    good = Check(name="a", metric="m", value=0.0, limit=0.0)
    made = run_planned(Planned(("a", "b"), lambda: (good,)))
    assert [(check.name, check.passed) for check in made] == [("a", True), ("b", False)]


@pytest.mark.parametrize("values", [(0.0, 1.0), (1.0, 0.0)])
def test_of_two_results_of_one_name_the_failed_one_counts(values: tuple[float, float]) -> None:
    checks = [Check(name="a", metric="m", value=value, limit=0.0) for value in values]
    good = [check.model_copy(update={"value": 0.0}) for check in checks]
    assert all(check.passed for check in run_planned(Planned(("a",), lambda: good)))
    assert not any(check.passed for check in run_planned(Planned(("a",), lambda: checks)))


@pytest.mark.parametrize("error", [BadInput("odd graph"), KeyError("odd graph"), AssertionError()])
def test_an_error_fails_the_checks_and_is_told(error: Exception) -> None:
    def run() -> tuple[Check, ...]:
        raise error

    made = run_planned(Planned(("a", "b"), run))
    assert [check.passed for check in made] == [False, False]
    assert made[0].note
    assert made[0].value is None


def test_a_missing_package_is_no_verdict() -> None:
    def run() -> tuple[Check, ...]:
        raise EnvironmentLacks("onnxruntime is missing")

    with pytest.raises(EnvironmentLacks):
        run_planned(Planned(("a",), run))


def test_not_run_is_a_failure() -> None:
    assert not not_run("a", "why").passed


@pytest.mark.parametrize("value", [0.0, None])
def test_the_table_tells_the_verdict(value: float | None) -> None:
    from rich.console import Console

    console = Console(width=200, file=io.StringIO())
    check = Check(name="frames", metric="levels", value=value, limit=1.0, note="[bold]note")
    console.print(render(report_of(check)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[bold]note" in text
    assert ("1 checks passed" in text) == (value is not None)
    assert ("failed: frames" in text) == (value is None)
