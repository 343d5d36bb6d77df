"""The stages in their order, and the run that ends at the first that fails."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastwan.bundle import Bundle, open_bundle
from fastwan.cache_folder import cache_root
from fastwan.errors import EnvironmentLacks, FastWanError, VerificationFailed
from fastwan.manifest import MANIFEST
from fastwan.outputs import OutputFolder
from fastwan.progress import Progress, Quiet, stage
from fastwan.quality import gpu_state
from fastwan.quality.selftest import between, blocks, environment, gemm, regions, video
from fastwan.quality.selftest.anonymous import anonymous, private_words
from fastwan.quality.selftest.context import Context, Outcome, Skip, StageFailure
from fastwan.quality.selftest.machine import Machine, machine_of
from fastwan.quality.selftest.markdown import markdown
from fastwan.quality.selftest.report import (
    Figure,
    Gpu,
    SelftestReport,
    Software,
    StageResult,
    TestedBundle,
)
from fastwan.schema import BundleFacts

JSON, MARKDOWN = "selftest.json", "selftest.md"

_ON_CPU = "small videos on the CPU reference: generate --device cpu"
_NATIVE = "native attention: build-engine --attention native makes a bundle without this kernel"
_NOT_LIFTED = "a bundle without these kernels: build-engine --fusion none makes one"
_ENDED = "the process ended in this stage: a crash of the driver or of a library, or a signal"
_CALLS = "everything, call by call: generate and bench make the same frames without a graph"


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        run: on a GPU.
        on_host: what of it can be proven without one.
        still_works: what can be used all the same when it has failed.
    """

    name: str
    title: str
    run: Callable[[Context], Outcome]
    on_host: Callable[[Context], Outcome]
    still_works: str


STAGES = (
    Stage(
        "driver", "driver and libraries", environment.driver, environment.driver_on_host, _ON_CPU
    ),
    Stage("library", "plugin library", environment.library, environment.library_on_host, _ON_CPU),
    Stage(
        "prologue",
        "prologue of the attention",
        regions.prologue,
        regions.prologue_on_host,
        _NATIVE,
    ),
    Stage(
        "attention",
        "attention against the reference",
        regions.attention,
        regions.attention_on_host,
        _NATIVE,
    ),
    Stage(
        "glue",
        "kernels between GEMMs against their references",
        between.glue,
        between.glue_on_host,
        _NOT_LIFTED,
    ),
    Stage("gemm", "one FP4 GEMM against the reference", gemm.gemm, gemm.gemm_on_host, _ON_CPU),
    Stage("block", "one block", blocks.block, blocks.block_on_host, _ON_CPU),
    Stage("step", "one denoising step", blocks.step, blocks.step_on_host, _ON_CPU),
    Stage(
        "capture",
        "captured video against call by call",
        video.capture,
        video.capture_on_host,
        _CALLS,
    ),
    Stage(
        "times",
        "stage times beside the prediction",
        video.times,
        video.times_on_host,
        "everything; only times are missing",
    ),
)


def selftest(
    path: Path,
    output: Path,
    *,
    device: str = "auto",
    shape: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> SelftestReport:
    """Run the stages on this machine and write the report to a folder.

    Args:
        path: an engine bundle.
        output: folder for ``selftest.json`` and ``selftest.md``.
        device: "auto", "cuda", "emulated" or "host".
        shape: of the bundle's, e.g. "832x480x81"; its first where None.
        force: replace the folder whatever it holds.

    Raises:
        BadInput: no bundle there, another device, or a folder that may not be replaced.
    """
    machine = machine_of(device)
    folder = OutputFolder(output, "selftest", force=force, inputs=(path,))
    folder.tell_what_is_deleted()

    def write(report: SelftestReport) -> None:
        with folder.make() as made:
            (made / JSON).write_text(report.to_json() + "\n", encoding="utf-8")
            (made / MARKDOWN).write_text(markdown(report), encoding="utf-8")

    return run_stages(open_bundle(path, shape=shape), machine, progress or Quiet(), write=write)


def run_stages(
    bundle: Bundle,
    machine: Machine,
    progress: Progress,
    stages: Sequence[Stage] = STAGES,
    write: Callable[[SelftestReport], None] = lambda _: None,
) -> SelftestReport:
    """Run the stages up to the first that fails.

    Args:
        write: is given the report before each stage as it is if the process ends in it, since a
            driver may take the process with it, and at the end.
    """
    context = Context(bundle, machine)
    words = private_words([bundle.root, bundle.folder], [cache_root()])
    results: list[StageResult] = []

    def told(running: StageResult | None) -> SelftestReport:
        known = [*results, *([running] if running else [])]
        left = [
            StageResult(name=each.name, title=each.title, status="not reached")
            for each in stages[len(known) :]
        ]
        report = SelftestReport(
            device=machine.kind,
            bundle=_tested(bundle),
            gpu=_gpu(context, results),
            software=_software(),
            stages=(*known, *left),
        )
        return anonymous(report, words)

    try:
        for each in stages:
            write(told(_failed(each, cause=_ENDED, exit_code=4)))
            with stage(progress, f"selftest {each.name}"):
                results.append(_run(each, context))
            if results[-1].status == "failed":
                break
        report = told(None)
    finally:
        context.close()
    write(report)
    return report


def _run(each: Stage, context: Context) -> StageResult:
    run = each.on_host if context.machine.kind == "host" else each.run
    try:
        outcome = run(context)
    except Skip as skip:
        return StageResult(name=each.name, title=each.title, status="skipped", note=str(skip))
    except StageFailure as failure:
        return _failed(each, cause=str(failure), figures=failure.figures, exit_code=4)
    except FastWanError as error:
        lacks = isinstance(error, EnvironmentLacks)
        code = EnvironmentLacks.exit_code if lacks else VerificationFailed.exit_code
        return _failed(each, cause=error.what, fix=error.fix, exit_code=code)
    except Exception as error:  # whatever a library raises ends the stage and not the report
        said = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        return _failed(each, cause=said, exit_code=4)
    return StageResult(
        name=each.name,
        title=each.title,
        status="passed",
        note=outcome.note,
        figures=outcome.figures,
    )


def _failed(
    each: Stage,
    *,
    cause: str,
    exit_code: int,
    fix: str = "",
    figures: tuple[Figure, ...] = (),
) -> StageResult:
    return StageResult(
        name=each.name,
        title=each.title,
        status="failed",
        cause=cause,
        fix=fix,
        still_works=each.still_works,
        exit_code=exit_code,
        figures=figures,
    )


def _tested(bundle: Bundle) -> TestedBundle:
    digest = hashlib.sha256((bundle.folder / MANIFEST).read_bytes()).hexdigest()
    return TestedBundle.of(BundleFacts.of(bundle), digest)


def _gpu(context: Context, results: Sequence[StageResult]) -> Gpu | None:
    if context.machine.kind == "host" or not results or results[0].status != "passed":
        return None
    info, state = context.device.info, gpu_state.gpu_state()
    return Gpu(
        name=info.name,
        compute_capability=info.compute_capability,
        driver_cuda=info.driver,
        driver=None if state is None else state.driver,
        total_bytes=info.total_bytes,
    )


def _software() -> Software:
    found = gpu_state.environment()
    return Software(
        python=found.python,
        system=f"{platform.system()} {platform.machine()}",
        packages=found.packages,
    )
