"""What a gate found: one figure or fact held against a baseline or a limit, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import computed_field, field_validator

from fastwan.schema import BundleFacts, Label, Record, Report

Verdict = Literal["passed", "improved", "skipped", "worse", "wrong", "refused"]
"""``passed``: within its limit. ``improved``: better than the baseline by more than the limit.
``skipped``: not looked at; the text says why. ``worse``: beyond the limit that the baseline sets.
``wrong``: a result that is not right whatever the baseline says. ``refused``: there was nothing
sound to compare with."""

EXIT_CODES: dict[Verdict, int] = {"wrong": 4, "worse": 5, "refused": 2}
"""Of a command with findings, in the order in which they count; others do not fail."""

FOUND: dict[Verdict, str] = {
    "passed": "passed", "improved": "improved", "skipped": "skipped",
    "worse": "WORSE", "wrong": "WRONG", "refused": "REFUSED",
}  # fmt: skip
"""Verdicts as tables show them: failures in capitals."""


class Finding(Record):
    """What came of one check of a stage."""

    stage: str
    """Of the gate, e.g. ``static``."""
    check: str
    """Names the figure within its stage, e.g. ``dit.scratch_bytes``."""
    verdict: Verdict
    value: int | float | None = None
    """Null where the check is of no number, could not be run or gave no finite figure."""
    baseline: int | float | None = None
    """What it is held against; null where the check has limits of its own."""
    limit: int | float | None = None
    """The worst good value; null where there is none, or where nothing passes."""
    unit: str = ""
    """Of the three numbers; empty for a count, a ratio or what `text` explains."""
    text: str = ""
    """One line: what was compared, why it failed, or what to do."""
    label: Label = "measured"

    @field_validator("value", "baseline", "limit")
    @classmethod
    def _finite(cls, figure: int | float | None) -> int | float | None:
        return figure if figure is not None and math.isfinite(figure) else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def failed(self) -> bool:
        """Whether the verdict makes the command fail."""
        return self.verdict in EXIT_CODES


def exit_code_of(findings: Sequence[Finding]) -> int:
    """Exit code of a command: that of the gravest verdict, or 0.

    Without any finding nothing was shown, which is no success: 2.
    """
    if not findings:
        return EXIT_CODES["refused"]
    verdicts = {finding.verdict for finding in findings}
    return next((code for verdict, code in EXIT_CODES.items() if verdict in verdicts), 0)


class FindingsReport(Report):
    """A report whose verdict is that of its findings."""

    if TYPE_CHECKING:  # a field where a report has it in its own order
        findings: tuple[Finding, ...]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        """Whether no finding failed, and there are any."""
        return self.exit_code == 0

    @computed_field  # type: ignore[prop-decorator]
    @property
    def exit_code(self) -> int:
        """Of the command, see `exit_code_of`."""
        return exit_code_of(self.findings)


class GateReport(FindingsReport):
    """Outcome of the stages of a gate."""

    kind: Literal["gate"] = "gate"
    schema_version: Literal[1] = 1
    bundle: BundleFacts
    baseline: str
    """Path of the baseline's file."""
    stages: tuple[str, ...]
    """Those that were asked for, in order."""
    cohort: dict[str, str]
    """What the figures of this run depend on; only baselines of the same cohort count."""
    findings: tuple[Finding, ...]
    rewritten: bool = False
    """Whether the baseline's file was rewritten from this run."""
    rewrite: str = ""
    """Command that rewrites the baseline from such a run."""

    @property
    def advice(self) -> str:
        """`rewrite` where it would take over something that was found; else empty.

        What is wrong is not, nor are goldens, nor times that nothing sound was measured of.
        """
        for each in self.findings:
            held = each.stage not in ("verify", "goldens") and each.check != "all"
            refused = each.verdict == "refused" and held and not _unsound(each)
            if not self.rewritten and (refused or each.verdict in ("improved", "worse")):
                return self.rewrite
        return ""


def _unsound(finding: Finding) -> bool:
    """Whether a run was refused for itself and not for its baseline."""
    return finding.check.startswith(("throttling", "spread.", "limit "))
