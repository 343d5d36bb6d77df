"""Findings for readers: lines for a terminal, and figures as tables show them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fastwan.quality.findings import FOUND, Finding


def verdict_line(findings: Sequence[Finding]) -> str:
    """The outcome in one line: failures by name, or how many checks passed."""
    failed = [f"{each.stage} {each.check}" for each in findings if each.failed]
    if failed:
        more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
        return f"failed: {', '.join(failed[:5])}{more}"
    if not findings:
        return "failed: nothing was checked"
    counts = Counter(each.verdict for each in findings)
    return ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))


def render(findings: Sequence[Finding], *, all_of_them: bool = False) -> str:
    """Lines for a terminal: a line a stage, and one for each finding that is not plainly passed.

    Args:
        all_of_them: show what passed, too.
    """
    lines = []
    for stage in dict.fromkeys(each.stage for each in findings):
        of_stage = [each for each in findings if each.stage == stage]
        lines.append(f"{stage}: {_outcome(of_stage)}")
        for each in of_stage:
            if all_of_them or each.verdict != "passed":
                lines.append(f"  {FOUND[each.verdict]:>8}  {each.check}: {said(each)}")
    return "\n".join([*lines, verdict_line(findings)])


def _outcome(findings: Sequence[Finding]) -> str:
    """How many of those that were looked at passed."""
    passed = sum(each.verdict in ("passed", "improved") for each in findings)
    skipped = sum(each.verdict == "skipped" for each in findings)
    if skipped == len(findings):
        return "skipped"
    line = f"{passed} of {len(findings) - skipped} checks passed"
    return f"{line}, {skipped} skipped" if skipped else line


def said(finding: Finding) -> str:
    """Numbers and text of a finding in one line."""
    parts = []
    if finding.value is not None:
        parts.append(with_unit(finding.value, finding.unit))
    if finding.baseline is not None:
        parts.append(f"baseline {with_unit(finding.baseline, finding.unit)}")
    if finding.limit is not None:
        parts.append(f"limit {with_unit(finding.limit, finding.unit)}")
    numbers = ", ".join(parts)
    return "; ".join(each for each in (numbers, finding.text) if each)


def with_unit(figure: float, unit: str) -> str:
    """A figure as tables show it: counts whole, others to six digits."""
    shown = f"{figure:,}" if isinstance(figure, int) else f"{figure:,.6g}"
    return f"{shown} {unit}".rstrip()


def cell(text: str) -> str:
    """Text that a table takes as it stands."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return " ".join(escaped.split())
