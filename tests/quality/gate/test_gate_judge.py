"""The comparison of one figure, and the limits that it is made by."""

from __future__ import annotations

import math

import pytest

from fastwan.errors import BadInput
from fastwan.quality.gate.judge import Kind, judge
from fastwan.quality.gate.limits import DEFAULTS, Limit, limit_of, parse_limits

STAGES = ("static", "times")


@pytest.mark.parametrize(
    ("value", "baseline", "limit", "verdict"),
    [
        (100, 100, Limit(), "passed"),
        (101, 100, Limit(), "worse"),
        (99, 100, Limit(), "improved"),
        (105.0, 100.0, Limit(relative=0.05), "passed"),
        (105.1, 100.0, Limit(relative=0.05), "worse"),
        (94.9, 100.0, Limit(relative=0.05), "improved"),
        # The larger of the two: 5 % of 1 ms is noise, 0.1 ms of 100 ms is, too.
        (1.1, 1.0, Limit(relative=0.05, absolute=0.1), "passed"),
        (1.11, 1.0, Limit(relative=0.05, absolute=0.1), "worse"),
        (104.0, 100.0, Limit(relative=0.05, absolute=0.1), "passed"),
        (0, 0, Limit(), "passed"),
        (1, 0, Limit(relative=0.5), "worse"),
        (1, 0, Limit(absolute=1), "passed"),
        (None, 100, Limit(), "wrong"),
        (math.nan, 100, Limit(), "wrong"),
        (math.inf, 100, Limit(), "wrong"),
        (-1, 100, Limit(), "wrong"),
        (100, None, Limit(), "refused"),
        (100, math.nan, Limit(), "refused"),
        (100, -1, Limit(), "refused"),
    ],
)
def test_a_figure_is_held_by_a_share_and_an_amount(
    value: float | None, baseline: float | None, limit: Limit, verdict: str
) -> None:
    assert judge("static", "kernels", value, baseline, limit).verdict == verdict


@pytest.mark.parametrize(
    ("value", "baseline", "verdict"),
    [(1.0, 1.0, "passed"), (0.0, 1.0, "wrong"), (1.0, 0.0, "refused")],
)
def test_a_time_is_not_zero(value: float, baseline: float, verdict: str) -> None:
    kind = Kind(unit="ms", positive=True)
    assert judge("times", "decode", value, baseline, Limit(), kind).verdict == verdict
    assert judge("schedule", "waits", 0, 0, Limit()).verdict == "passed"


def test_a_share_that_should_be_large_is_held_from_below() -> None:
    kind = Kind(better="higher", beyond="wrong")
    verdicts = [judge("static", "share", v, 0.75, Limit(), kind).verdict for v in (0.7, 0.75, 0.8)]
    assert verdicts == ["wrong", "passed", "improved"]


def test_a_finding_says_by_how_much_and_what_was_allowed() -> None:
    worse = judge("times", "decode", 12.0, 10.0, Limit(relative=0.1), Kind(unit="ms"))
    assert (worse.value, worse.baseline, worse.limit, worse.unit) == (12.0, 10.0, 11.0, "ms")
    assert worse.text == "20.0% worse than the baseline"
    assert judge("static", "bytes", 9, 10, Limit()).text == "10.0% better than the baseline"


def test_the_limit_with_the_longest_name_counts() -> None:
    limits = {"times": Limit(relative=0.1), "times.decode": Limit(relative=0.2)}
    assert limit_of(limits, "times", "decode").relative == 0.2
    assert limit_of(limits, "times", "step_0").relative == 0.1
    assert limit_of(limits, "times", "loading") == DEFAULTS["times.loading"]
    assert limit_of({"static.dit": Limit(absolute=7)}, "static", "dit.bytes").absolute == 7
    assert limit_of({}, "static", "dit.bytes") == Limit()


@pytest.mark.parametrize(
    ("option", "limit"),
    [
        ("times=0.1", Limit(relative=0.1)),
        ("times.decode=0.1:2.5", Limit(relative=0.1, absolute=2.5)),
        ("static=0:4096", Limit(absolute=4096)),
        ("times", None), ("times=", None), ("times=a", None), ("times=nan", None),
        ("times=-0.1", None), ("times=11", None), ("times=0.1:-1", None), ("times=0.1:inf", None),
        ("verify=0.1", None), ("=0.1", None),
    ],
)  # fmt: skip
def test_limits_of_the_command_line_are_read_or_refused(option: str, limit: Limit | None) -> None:
    if limit is not None:
        assert parse_limits([option], STAGES) == {option.partition("=")[0]: limit}
        return
    with pytest.raises(BadInput, match="--limit"):
        parse_limits([option], STAGES)
