"""`compare_bundles`: two bundles side by side, static facts and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastwan.bundle import open_bundle
from fastwan.errors import BadInput
from fastwan.outputs import OutputFolder
from fastwan.progress import Progress, Quiet, stage
from fastwan.quality.compare.report import CompareReport, NumericComparison
from fastwan.quality.compare.static import Side, compare_static
from fastwan.quality.findings import Finding
from fastwan.quality.kernels import Kernel
from fastwan.runtime.model.executor import Array
from fastwan.schema import BundleFacts


@dataclass
class Comparison:
    """A report, and what its page shows beside it.

    Attributes:
        kernels: of both bundles.
        videos: frames of the first video by both bundles; none without decoders.
    """

    report: CompareReport
    kernels: tuple[Sequence[Kernel], Sequence[Kernel]]
    videos: list[Array] = field(default_factory=list)


def compare_bundles(
    a: Path | str,
    b: Path | str,
    *,
    static: bool = False,
    device: str = "cpu",
    sampler: str | None = None,
    prompts: Sequence[str] = (),
    seeds: Sequence[int] = (),
    by_block: bool = False,
    limit: float | None = None,
    tensors: Path | None = None,
    force: bool = False,
    shape: str | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Compare two bundles.

    Args:
        static: compare what the engines are made of, and play nothing.
        device: "cpu", the CPU reference at a small size; "emulated" or "cuda" at the bundles' own.
        sampler: name of the sampler; by default the bundles' own, of two the one with fewer steps.
            At most three steps of one that has no timesteps of its own are played.
        prompts: by default one sentence.
        seeds: by default the published one.
        by_block: look into the first step, block by block; where a block parts, tensor by tensor.
        limit: largest relative L2 difference of a step that is good. Without one nothing is judged.
        tensors: folder for the tensors of `by_block` in Polygraphy's files.
        force: replace what lies there.
        shape: of the bundles', e.g. "832x480x81"; their first where None.

    Raises:
        BadInput: no bundles of this tool, they cannot be played side by side, or a limit or a
            folder that means nothing.
        EnvironmentLacks: the device or a package is missing.
        VerificationFailed: a file differs from its hash.
    """
    if limit is not None and not 0 <= limit < float("inf"):
        raise BadInput(f"{limit:g} is no difference", where="--limit", fix="0.05 is 5 %")
    if tensors is not None and (static or not by_block):
        raise BadInput("no tensors are compared", where="--tensors", fix="pass --by-block")
    paths = tuple(map(Path, (a, b)))
    place = None
    if tensors is not None:
        place = OutputFolder(tensors, "tensors", force, "--tensors", paths)
    left, right = (open_bundle(path, shape=shape) for path in paths)
    players = None
    if not static:
        # The numbers need torch, the facts do not.
        from fastwan.quality.compare.play import Players

        players = Players(left, right, device)
    progress = progress or Quiet()
    with stage(progress, "match kernels"):
        sides = Side.of(left), Side.of(right)
        facts = compare_static(*sides)
    played = None
    if players is not None:
        played = players.compare(
            sampler=sampler,
            prompts=prompts,
            seeds=seeds,
            by_block=by_block,
            limit=limit,
            tensors=place,
            progress=progress,
        )
    report = CompareReport(
        a=BundleFacts.of(left),
        b=BundleFacts.of(right),
        limit=limit,
        static=facts,
        numeric=None if played is None else played.figures,
        findings=() if played is None else judged(played.figures, limit),
    )
    kernels = (sides[0].kernels, sides[1].kernels)
    return Comparison(report, kernels, [] if played is None else played.videos)


def judged(figures: NumericComparison, limit: float | None) -> tuple[Finding, ...]:
    """Steps and blocks held to a limit; without one they are told and not judged."""
    values = {
        f"prompt_{each.prompt}.seed_{each.seed}.step_{each.step}": each.velocity
        for each in figures.steps
    }
    values |= {f"block_{each.block}": each.drift for each in figures.blocks}

    def finding(check: str, value: float | None) -> Finding:
        good = value is not None and limit is not None and value <= limit
        return Finding(
            stage="numeric",
            check=check,
            verdict="skipped" if limit is None else "passed" if good else "wrong",
            value=value,
            limit=limit,
            text="relative L2 difference" + ("; no --limit to hold it to" if limit is None else ""),
            label="emulated",
        )

    return tuple(finding(check, value) for check, value in values.items())
