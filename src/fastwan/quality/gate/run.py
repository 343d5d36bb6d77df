"""`gate`: run the stages in order, hold them against a baseline or make one of them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from fastwan.bundle import open_bundle
from fastwan.errors import BadInput, EnvironmentLacks, FastWanError, VerificationFailed
from fastwan.outputs import OutputFile
from fastwan.progress import Progress, Quiet
from fastwan.quality.bench import bench, check_runs
from fastwan.quality.bench_report import BenchReport
from fastwan.quality.findings import Finding, GateReport, Verdict
from fastwan.quality.gate import stages as untimed
from fastwan.quality.gate.baseline_file import HELD, Baseline, baseline_output
from fastwan.quality.gate.cohort import bundle_cohort, differing, rates_cohort
from fastwan.quality.gate.context import Context
from fastwan.quality.gate.goldens_stage import goldens
from fastwan.quality.gate.history import HistoryRecord, append_record, read_history
from fastwan.quality.gate.limits import DEFAULTS, parse_limits
from fastwan.quality.gate.times import times
from fastwan.quality.gate.update import rewritten
from fastwan.quality.goldens.run import check_limit
from fastwan.runtime.device.choice import require_emulable, resolve_device

Stage = Callable[[Context], list[Finding]]

STAGES: dict[str, Stage] = {
    "static": untimed.static,
    "verify": untimed.verify,
    "schedule": untimed.schedule,
    "predicted": untimed.predicted,
    "times": times,
    "goldens": goldens,
}
"""In the order in which they run."""

WITHOUT_GPU = "choose other stages by --stage"

DEVICES = ("auto", "cuda", "emulated")


def gate(
    path: Path,
    against: Path,
    *,
    stages: Sequence[str] = (),
    update: bool = False,
    limits: Sequence[str] = (),
    goldens: Path | None = None,
    golden_limit: float = 0.0,
    history: Path | None = None,
    device: str = "auto",
    runs: int = 5,
    warmup: int = 2,
    shape: str | None = None,
    measure: Callable[[], BenchReport] | None = None,
    progress: Progress | None = None,
) -> GateReport:
    """Everything ``gate --json`` prints.

    A stage that fails does not raise.

    Args:
        path: an engine bundle.
        against: file of the baseline.
        stages: names of `STAGES`; by default all that can be had: ``times`` on a GPU, where the
            baseline has any, and ``goldens`` where a folder is given.
        update: write the baseline from this run; stages that do not run keep their figures.
        limits: see `parse_limits`; written into a baseline that is made.
        goldens: folder that ``goldens make`` wrote.
        golden_limit: largest good relative L2 difference to them; 0 is equal to the byte.
        history: file of earlier times, to which those of this run are added.
        device: "auto" for the GPU where one is visible; "cuda"; or "emulated" for a Hopper GPU in
            place of the target, which ``times`` and the full size of ``verify`` then run on.
        runs: measured videos of the stage ``times``.
        warmup: videos before them.
        shape: of the bundle's, e.g. "832x480x81"; its first where None.
        measure: times a video, in place of ``bench`` on the first GPU.

    Raises:
        BadInput: no bundle, no baseline, a stage, device or number that is none of its option, a
            history that cannot be read or written, or a bundle that cannot be emulated.
        EnvironmentLacks: a stage or a device that was asked for by name lacks a GPU or a package.
    """
    progress = progress or Quiet()
    chosen = _chosen(stages, goldens)
    check_runs(runs, warmup)
    check_limit(golden_limit, "--golden-limit")
    given = parse_limits(limits, HELD)
    known = _known(against, update)
    records = None if history is None else _records(history)
    if device not in DEVICES:
        raise BadInput(f"unknown device {device!r}", where="--device", fix=", ".join(DEVICES))
    if device != "auto":
        resolve_device(device, "leave --device")
    bundle = open_bundle(path, sizes=False, shape=shape)
    if device == "emulated":
        require_emulable(bundle)

    def measured() -> BenchReport:
        on = resolve_device("cuda" if device == "auto" else device, WITHOUT_GPU).name
        return bench(path, device=on, runs=runs, warmup=warmup, shape=shape, progress=progress)

    context = Context(
        bundle=bundle,
        baseline=known,
        update=update,
        limits={**({} if known is None else known.limits), **given},
        stages=chosen,
        asked=tuple(stages),
        measure=measure or measured,
        device=device,
        progress=progress,
        goldens=goldens,
        golden_limit=golden_limit,
        history=records,
    )
    findings = _run(context)
    if history is not None and context.measured is not None:
        append_record(history, context.measured)
    refused = any(finding.verdict == "refused" for finding in findings)
    if update and not refused:
        rewritten(context, findings).write(baseline_output(against))
    return GateReport(
        bundle=context.facts,
        baseline=str(against),
        stages=chosen,
        cohort={**bundle_cohort(context.facts), **context.gpu},
        findings=tuple(findings),
        rewritten=update and not refused,
        rewrite=_command(path, against, stages, goldens, shape, device),
    )


def _chosen(stages: Sequence[str], goldens: Path | None) -> tuple[str, ...]:
    if unknown := [name for name in stages if name not in STAGES]:
        raise BadInput(
            f"unknown stage {unknown[0]!r}", where="--stage", fix=f"of {', '.join(STAGES)}"
        )
    if "goldens" in stages and goldens is None:
        raise BadInput("goldens of which folder", where="--stage", fix="name it with --goldens")
    if stages:
        return tuple(name for name in STAGES if name in stages)
    return tuple(name for name in STAGES if name != "goldens" or goldens is not None)


def _known(against: Path, update: bool) -> Baseline | None:
    """The baseline; None where it is made for the first time."""
    if update:
        baseline_output(against)
        if not against.exists():
            return None
    return Baseline.read(against)


def _records(history: Path) -> list[HistoryRecord]:
    """Earlier times; refused where this run's could not be added to them after the work."""
    records = read_history(history)
    OutputFile(history, lambda _: True, option="--history", has_force=False)
    return records


def _run(context: Context) -> list[Finding]:
    findings, other = _cohort(context)
    why = ""
    if "verify" in context.stages or "static" in context.stages:
        look = untimed.integrity if "verify" in context.stages else untimed.files
        findings.append(look(context))
        why = "files differ from the manifest" if findings[-1].failed else ""
    for name in context.stages:
        skip = why
        if not skip and name in HELD:
            skip = other.get(name, "")
        if not skip and name == "goldens":
            failed = [each.check for each in findings if each.stage == "verify" and each.failed]
            skip = f"verify failed at {failed[0]}" if failed else ""
        if skip:
            findings.append(Finding(stage=name, check="all", verdict="skipped", text=skip))
        else:
            findings += _stage(context, name)
    findings += _unused_limits(context, findings)
    return _with_red(context, findings)


def _unused_limits(context: Context, findings: Sequence[Finding]) -> list[Finding]:
    """Limits of stages with figures which are of no check: a misspelt one would hold nothing."""
    names = {f"{each.stage}.{each.check}" for each in findings} | DEFAULTS.keys()
    names |= {f"times.clocks.{clock}" for clock in context.clocks}
    unused = (
        name
        for name in context.limits
        if name.partition(".")[0] in context.collected
        and not any(f"{each}.".startswith(f"{name}.") for each in names)
    )
    text = "it is of no check: mend its name, in --limit or in the baseline"
    return [
        Finding(stage="baseline", check=f"limit {name}", verdict="refused", text=text)
        for name in unused
    ]


def _stage(context: Context, name: str) -> list[Finding]:
    """Findings of a stage; what it raises is one of them."""
    try:
        return STAGES[name](context)
    except EnvironmentLacks:
        raise
    except FastWanError as error:
        wrong = isinstance(error, VerificationFailed)
        verdict: Verdict = "wrong" if wrong else "refused"
        return [Finding(stage=name, check="all", verdict=verdict, text=str(error))]


def _cohort(context: Context) -> tuple[list[Finding], dict[str, str]]:
    """Whether the baseline is of this cohort; why stages are not compared, by stage."""
    baseline, found, other = context.baseline, [], {}
    if baseline is None or context.update:
        return [], {}
    differences = differing(baseline.cohort, bundle_cohort(context.facts))
    if differences:
        other = dict.fromkeys(HELD, f"baseline of another cohort: {', '.join(differences)}")
    elif "predicted" in context.stages and baseline.figures("predicted"):
        rates = differing(baseline.rates, rates_cohort(context.bundle.manifest.target))
        if rates:
            differences, other = rates, {"predicted": "other rates of the GPU"}
    for key, said in differences.items():
        found.append(Finding(stage="baseline", check=key, verdict="refused", text=said))
    if not differences:
        found.append(Finding(stage="baseline", check="cohort", verdict="passed"))
    return found, other


def _with_red(context: Context, findings: list[Finding]) -> list[Finding]:
    """The findings, with what was red when the baseline was made said at each."""
    if context.baseline is None or context.update:
        return findings
    red = set(context.baseline.red)
    told = []
    for finding in findings:
        if f"{finding.stage} {finding.check}" in red and finding.verdict != "skipped":
            said = "the baseline was already red here"
            text = f"{finding.text}; {said}" if finding.text else said
            better = {} if finding.failed else {"verdict": "improved"}
            finding = finding.model_copy(update={"text": text, **better})
        told.append(finding)
    return told


def _command(
    path: Path,
    against: Path,
    stages: Sequence[str],
    goldens: Path | None,
    shape: str | None,
    device: str,
) -> str:
    """Command that rewrites the baseline from such a run."""
    words = ["fastwan-export", "gate", str(path), "--against", str(against)]
    words += ["--stage", ",".join(stages)] if stages else []
    words += ["--goldens", str(goldens)] if goldens else []
    words += ["--shape", shape] if shape else []
    words += ["--device", device] if device != "auto" else []
    return shlex.join([*words, "--update-baseline"])
