"""Findings: their exit code, and how they read in a terminal and in JUnit XML."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from fastwan.quality.findings import EXIT_CODES, Finding, Verdict, exit_code_of
from fastwan.quality.findings_text import render
from fastwan.quality.junit import junit


def found(verdict: Verdict, check: str = "scratch_bytes", text: str = "") -> Finding:
    return Finding(
        stage="static", check=check, verdict=verdict, value=3000, baseline=2000.5, limit=2000.5,
        unit="B", text=text,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        (["passed", "improved", "skipped"], 0),
        (["passed", "worse"], 5),
        (["worse", "wrong"], 4),
        (["refused", "worse"], 5),
        (["refused", "passed"], 2),
        ([], 2),
    ],
)
def test_the_gravest_verdict_makes_the_exit_code(verdicts: list[Verdict], code: int) -> None:
    assert exit_code_of([found(verdict) for verdict in verdicts]) == code


@pytest.mark.parametrize("figure", [math.nan, math.inf])
def test_a_figure_that_is_not_finite_is_null(figure: float) -> None:
    assert found("wrong").value == 3000
    assert Finding(stage="times", check="step", verdict="wrong", value=figure).value is None


def test_a_terminal_sees_what_did_not_plainly_pass() -> None:
    text = render([found("passed", "kernels"), found("worse", text="rebuild it")])
    assert text.splitlines() == [
        "static: 1 of 2 checks passed",
        "     WORSE  scratch_bytes: 3,000 B, baseline 2,000.5 B, limit 2,000.5 B; rebuild it",
        "failed: static scratch_bytes",
    ]
    assert render([found("passed")]).splitlines()[-1] == "1 passed"
    assert render([found("passed"), found("improved")]).splitlines()[0] == (
        "static: 2 of 2 checks passed"
    )
    assert "kernels" in render([found("passed", "kernels")], all_of_them=True)
    assert render([]) == "failed: nothing was checked"


def test_junit_counts_failures_errors_and_what_was_skipped() -> None:
    findings = [found(verdict, verdict, "control \x01 <&>") for verdict in (*EXIT_CODES, "passed")]
    findings.append(Finding(stage="times", check="all", verdict="skipped", text="no GPU"))
    root = ElementTree.fromstring(junit("gate", findings))
    counts = {name: root.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": "5", "failures": "2", "errors": "1", "skipped": "1"}
    assert [suite.get("name") for suite in root] == ["static", "times"]
    outcomes = {test.get("name"): [each.tag for each in test] for test in root.iter("testcase")}
    assert outcomes == {
        "wrong": ["failure"], "worse": ["failure"], "refused": ["error"],
        "passed": ["system-out"], "all": ["skipped"],
    }  # fmt: skip
    message = root.find(".//failure").get("message")  # type: ignore[union-attr]
    assert message is not None
    assert message.endswith("control ? <&>")
