"""What the stages of a gate share: the bundle, the baseline, how figures are held against it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fastwan.bundle import Bundle
from fastwan.progress import Progress
from fastwan.quality.bench_report import BenchReport
from fastwan.quality.findings import Finding
from fastwan.quality.gate.baseline_file import Baseline
from fastwan.quality.gate.figures import Collected, kind_of
from fastwan.quality.gate.history import HistoryRecord
from fastwan.quality.gate.judge import judge
from fastwan.quality.gate.limits import Limit, limit_of
from fastwan.quality.inspection import InspectReport
from fastwan.quality.report import inspect_bundle
from fastwan.quality.verify.subject import Subject
from fastwan.schema import BundleFacts


@dataclass(eq=False)
class Context:
    """A run of the gate.

    Attributes:
        baseline: None where one is made for the first time.
        update: figures are not held against the baseline but become it.
        limits: of the baseline and of the command line.
        stages: those that run.
        asked: those of them that were asked for by name and not taken as they can be had.
        device: "auto", or where ``times`` and the full size of ``verify`` were told to run.
        measure: times a video on a GPU.
        goldens: folder of goldens; None without any.
        golden_limit: largest good relative L2 difference to them; 0 is equal to the byte.
        history: records of earlier times; None where none are kept.
        collected: figures of this run by stage, for a new baseline.
        checks: names of the checks of ``verify`` that were planned.
        gpu: cohort of the GPU that was timed.
        clocks: its median MHz meanwhile.
        measured: what a history keeps of the times.
    """

    bundle: Bundle
    baseline: Baseline | None
    update: bool
    limits: Mapping[str, Limit]
    stages: tuple[str, ...]
    asked: tuple[str, ...]
    measure: Callable[[], BenchReport]
    progress: Progress
    device: str = "auto"
    goldens: Path | None = None
    golden_limit: float = 0.0
    history: list[HistoryRecord] | None = None
    collected: dict[str, Collected] = field(default_factory=dict)
    checks: tuple[str, ...] = ()
    gpu: dict[str, str] = field(default_factory=dict)
    clocks: dict[str, int] = field(default_factory=dict)
    measured: HistoryRecord | None = None

    @cached_property
    def facts(self) -> BundleFacts:
        """Which bundle it is."""
        return BundleFacts.of(self.bundle)

    @cached_property
    def subject(self) -> Subject:
        """The bundle as ``verify`` reads it."""
        return Subject(self.bundle)

    @cached_property
    def inspected(self) -> InspectReport:
        """What ``inspect`` says of it."""
        return inspect_bundle(self.bundle)

    def hold(self, stage: str, figures: Collected) -> list[Finding]:
        """Hold the figures of a stage against the baseline's, each name of either.

        Where the baseline is rewritten they are held against themselves, which leaves what is
        wrong with them alone.
        """
        if figures:
            self.collected[stage] = figures
        old: Collected = {}
        if self.baseline is not None:
            old.update(self.baseline.figures(stage))
        findings = []
        for check in sorted(figures if self.update else figures.keys() | old.keys()):
            value = figures.get(check)
            against = value if self.update else old.get(check)
            limit = limit_of(self.limits, stage, check)
            finding = judge(stage, check, value, against, limit, kind_of(stage, check))
            if self.update and check in old and old[check] != value:
                finding = finding.model_copy(update={"text": f"was {old[check]:g}"})
            findings.append(finding)
        return findings
