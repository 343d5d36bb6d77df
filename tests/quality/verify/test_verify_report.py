"""What counts as passed."""

from __future__ import annotations

import io
import json
import math

import pytest

from fastwan.errors import BadInput, EnvironmentLacks
from fastwan.quality.verify.report import Check, Planned, Report, not_run, render, run_planned


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
    ],
)
def test_a_check_passes_within_a_finite_limit(
    value: float | None, limit: float, passed: bool
) -> None:
    check = Check("name", "metric", value, limit)
    assert check.passed is passed
    assert json.loads(json.dumps(check.to_json(), allow_nan=False))["passed"] is passed


def test_a_report_needs_checks_and_all_of_them() -> None:
    good, bad = Check("a", "m", 0.0, 0.0), Check("b", "m", 1.0, 0.0)
    assert Report((good,)).passed
    assert not Report((good, bad)).passed
    assert not Report(()).passed


def test_what_a_function_does_not_deliver_has_failed() -> None:
    good = Check("a", "m", 0.0, 0.0)
    made = run_planned(Planned(("a", "b"), lambda: (good,)))
    assert [(check.name, check.passed) for check in made] == [("a", True), ("b", False)]


@pytest.mark.parametrize("error", [BadInput("odd graph"), KeyError("odd graph"), AssertionError()])
def test_an_error_fails_the_checks_and_is_told(error: Exception) -> None:
    def run() -> tuple[Check, ...]:
        raise error

    made = run_planned(Planned(("a", "b"), run))
    assert [check.passed for check in made] == [False, False]
    assert made[0].note
    assert made[0].to_json()["value"] is None


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
    console.print(render(Report((Check("frames", "levels", value, 1.0, note="[bold]note"),))))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[bold]note" in text
    assert ("1 checks passed" in text) == (value is not None)
    assert ("failed: frames" in text) == (value is None)
