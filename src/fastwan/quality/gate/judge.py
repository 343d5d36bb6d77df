"""The one comparison of a figure with a baseline, for ``gate`` and for ``bench --baseline``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fastwan.quality.findings import Finding, Verdict
from fastwan.quality.gate.limits import Limit
from fastwan.schema import Label

Figures = Mapping[str, "int | float | None"]
"""By check; None or NaN where a figure that should be there is not."""


@dataclass(frozen=True)
class Kind:
    """What the figures of a stage have in common, or those of one check.

    Attributes:
        better: which way a figure improves.
        beyond: verdict on one that is worse by more than its limit.
        positive: whether 0 is no figure, as of a time.
    """

    unit: str = ""
    label: Label = "measured"
    better: Literal["lower", "higher"] = "lower"
    beyond: Verdict = "worse"
    positive: bool = False


def judge(
    stage: str,
    check: str,
    value: float | None,
    baseline: float | None,
    limit: Limit,
    kind: Kind = Kind(),
) -> Finding:
    """Hold a figure against that of a baseline.

    A figure that is missing, not finite, negative or 0 where that is no figure is ``wrong``; if it
    is the baseline's, the check is ``refused``.
    """
    sign = 1 if kind.better == "lower" else -1
    worst = best = None
    if baseline is not None and math.isfinite(baseline):
        margin = limit.margin(baseline)
        worst, best = baseline + sign * margin, baseline - sign * margin
        worst = int(worst) if isinstance(baseline, int) and worst == int(worst) else worst
    verdict: Verdict = "passed"
    text = ""
    if fault := _fault(value, kind):
        verdict, text = "wrong", fault
    elif fault := _fault(baseline, kind):
        verdict = "refused"
        text = (
            "the baseline has no such figure"
            if baseline is None
            else f"the baseline was already red: {fault}"
        )
    else:
        assert value is not None
        assert baseline is not None
        assert worst is not None
        assert best is not None
        if sign * (value - worst) > 0:
            verdict = kind.beyond
            text = f"{_share(sign * (value - baseline), baseline)}worse than the baseline"
        elif sign * (value - best) < 0:
            verdict = "improved"
            text = f"{_share(sign * (baseline - value), baseline)}better than the baseline"
    return Finding(
        stage=stage, check=check, verdict=verdict, value=value, baseline=baseline, limit=worst,
        unit=kind.unit, text=text, label=kind.label,
    )  # fmt: skip


def _fault(figure: float | None, kind: Kind) -> str:
    """What keeps a figure from being compared; empty for a sound one."""
    if figure is None:
        return "no such figure"
    if not math.isfinite(figure):
        return f"{figure} is no figure"
    if figure < 0 or (kind.positive and figure == 0):
        return f"{figure:g} cannot be"
    return ""


def _share(difference: float, baseline: float) -> str:
    return f"{difference / abs(baseline):.1%} " if baseline else ""
