"""A baseline as a run of the gate leaves it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastwan.quality.findings import Finding
from fastwan.quality.gate.baseline_file import Baseline
from fastwan.quality.gate.cohort import bundle_cohort, rates_cohort
from fastwan.quality.gate.context import Context


def rewritten(context: Context, findings: Sequence[Finding]) -> Baseline:
    """The baseline of this run's figures, and of the earlier one's for stages that did not run.

    Figures of another cohort are dropped. What failed by limits of its own is written down as red.
    """
    cohort = bundle_cohort(context.facts)
    old = context.baseline
    if old is None or old.cohort != cohort:
        old = Baseline(cohort=cohort)
    ran = context.collected.keys()
    stages = {name: dict(figures) for name, figures in old.stages.items()}
    for name, figures in context.collected.items():
        stages[name] = {
            check: value
            for check, value in sorted(figures.items())
            if value is not None and math.isfinite(value)
        }
    red = {f"{each.stage} {each.check}" for each in findings if each.failed}
    red |= {name for name in old.red if name.partition(" ")[0] not in context.stages}
    predicted = "predicted" in ran
    return Baseline(
        cohort=cohort,
        rates=rates_cohort(context.bundle.manifest.target) if predicted else old.rates,
        gpu=context.gpu if "times" in ran else old.gpu,
        clocks=context.clocks if "times" in ran else old.clocks,
        limits=dict(context.limits),
        stages=stages,
        checks=tuple(sorted(context.checks)) if context.checks else old.checks,
        red=tuple(sorted(red)),
    )
