"""The stages that can do without a GPU: static facts, ``verify``, counts, predicted times."""

from __future__ import annotations

from collections.abc import Sequence

from fastwan.errors import FastWanError
from fastwan.progress import stage
from fastwan.quality.bench import counts
from fastwan.quality.emulated.run import check_full_size, cuda_setting
from fastwan.quality.emulated.run import names as full_size_names
from fastwan.quality.findings import Finding, Verdict
from fastwan.quality.gate.context import Context
from fastwan.quality.gate.figures import predicted_figures, schedule_figures, static_figures
from fastwan.quality.verify import linears
from fastwan.quality.verify.files import check_integrity
from fastwan.quality.verify.report import Check, Planned, run_planned
from fastwan.quality.verify.run import plan
from fastwan.quality.verify.subject import Subject
from fastwan.runtime.model.samplers import schedule_of


def static(context: Context) -> list[Finding]:
    """What the engines hold: linears in their format, kernels, bytes, scratch, device memory."""
    formats = [each for planned in _formats(context.subject) for each in run_planned(planned)]
    findings = [found("static", check) for check in formats]
    return findings + context.hold("static", static_figures(context.inspected))


def verify(context: Context) -> list[Finding]:
    """The checks of ``verify`` by their own limits; none of the baseline's may be gone.

    With the device ``emulated`` those of the full size are among them. Where `static` runs, too,
    the engines' formats are its to hold.
    """
    elsewhere = {name for each in _formats(context.subject) for name in each.names}
    elsewhere = elsewhere if "static" in context.stages else set()
    checks: list[Check] = []
    for planned in plan(context.subject):
        if not elsewhere.issuperset(planned.names):
            with stage(context.progress, f"verify {planned.names[0]}"):
                checks += run_planned(planned)
    if context.device == "emulated":
        setting, progress = cuda_setting(context.bundle), context.progress
        checks += check_full_size(context.subject, setting, picture=None, progress=progress).checks
    context.checks = ("integrity", *(check.name for check in checks))
    findings = [found("verify", check) for check in checks]
    known = context.baseline.checks if context.baseline and not context.update else ()
    findings += [
        _gone(context, name) for name in known if name not in {*context.checks, *elsewhere}
    ]
    return findings


def _gone(context: Context, name: str) -> Finding:
    """A check of the baseline that did not run: none of this bundle, or one of another device."""
    verdict: Verdict = "wrong"
    text = "a check of the baseline that this bundle has no more"
    if "dit" in context.subject.present and name in full_size_names(context.subject):
        verdict, text = "skipped", "at the full size: --device emulated"
    return Finding(stage="verify", check=name, verdict=verdict, text=text)


def integrity(context: Context) -> Finding:
    """Every file against its hash, before anything else is read."""
    with stage(context.progress, "verify integrity"):
        return found("verify", check_integrity(context.bundle))


def files(context: Context) -> Finding:
    """Every file by its size alone, where `integrity` does not run; nothing is read."""
    finding = Finding(
        stage="static", check="listed_files", verdict="passed",
        text=f"{len(context.bundle.manifest.files)} files of the size that the manifest says",
    )  # fmt: skip
    try:
        context.bundle.check_sizes()
    except FastWanError as error:
        return finding.model_copy(update={"verdict": "wrong", "text": str(error)})
    return finding


def schedule(context: Context) -> list[Finding]:
    """Counts of one video on the recording device, and that nothing races in it."""
    if not {"dit", "decoder"} <= set(context.bundle.manifest.components):
        return _lacking(context, "schedule", "the bundle has no transformer or no decoder")
    report = counts(context.bundle, schedule_of(context.bundle.manifest.sampler_spec()))
    races = Finding(
        stage="schedule", check="races", verdict="wrong" if report.races else "passed",
        value=report.races, limit=0,
        text="accesses to the same bytes that nothing puts in order" if report.races else "",
    )  # fmt: skip
    return [*context.hold("schedule", schedule_figures(report)), races]


def predicted(context: Context) -> list[Finding]:
    """Predicted times by stage of a video."""
    figures = predicted_figures(context.inspected)
    if not figures:
        no_video = context.inspected.prediction is None
        text = context.inspected.note if no_video else "no rates of the target are known"
        return _lacking(context, "predicted", text)
    return context.hold("predicted", figures)


def _lacking(context: Context, stage_name: str, text: str) -> list[Finding]:
    """A stage that this bundle has nothing for: skipped, or wrong where the baseline has."""
    skipped = Finding(stage=stage_name, check="video", verdict="skipped", text=text)
    return context.hold(stage_name, {}) or [skipped]


def found(stage_name: str, check: Check) -> Finding:
    """A check of ``verify`` as a finding."""
    text = check.metric if check.passed else f"{check.metric}: {check.note}"
    return Finding(
        stage=stage_name, check=check.name, verdict="passed" if check.passed else "wrong",
        value=check.value, limit=check.limit, text=" ".join(text.split()), label=check.label,
    )  # fmt: skip


def _formats(subject: Subject) -> Sequence[Planned]:
    """The checks that no linear has lost its format in the engines."""
    names = {(linears.engines_check(gate),) for gate in linears.gates(subject)}
    return [planned for planned in plan(subject) if planned.names in names]
