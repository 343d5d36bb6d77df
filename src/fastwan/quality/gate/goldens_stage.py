"""The stage ``goldens``: the accuracy set against what was kept of it."""

from __future__ import annotations

from fastwan.quality.findings import Finding
from fastwan.quality.gate.context import Context
from fastwan.quality.goldens.run import held


def goldens(context: Context) -> list[Finding]:
    """One finding a video, or what the goldens were not made of."""
    assert context.goldens is not None
    if "dit" not in context.subject.graphs:
        text = "the bundle has no transformer: no video"
        return [Finding(stage="goldens", check="all", verdict="skipped", text=text)]
    return held(context.subject, context.goldens, context.golden_limit, context.progress)
