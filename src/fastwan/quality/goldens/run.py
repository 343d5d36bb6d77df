"""`make_goldens` and `check_goldens`: the accuracy set kept, and held against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastwan.bundle import open_bundle
from fastwan.errors import BadInput
from fastwan.outputs import OutputFolder
from fastwan.progress import Progress, Quiet
from fastwan.quality.findings import Finding, Verdict
from fastwan.quality.gate.cohort import differing
from fastwan.quality.goldens.play import Arrays, graphs_of, made_of, play, runs_on
from fastwan.quality.goldens.prompts import DEFAULT, read_prompts
from fastwan.quality.goldens.record import RECORD, GoldensRecord, GoldensReport
from fastwan.quality.goldens.store import read_golden, read_record, write_golden
from fastwan.quality.verify.subject import Subject
from fastwan.runtime.model.executor import Array
from fastwan.schema import BundleFacts

STAGE = "goldens"
MAX_LIMIT = 10.0


def make_goldens(
    path: Path,
    output: Path,
    *,
    prompts: Path | None = None,
    force: bool = False,
    shape: str | None = None,
    progress: Progress | None = None,
) -> GoldensReport:
    """Play the accuracy set on the CPU reference and keep what comes out in a folder.

    Args:
        path: an engine bundle.
        output: folder to write; an earlier one of goldens is replaced.
        prompts: see `read_prompts`; by default two videos.
        force: replace the folder whatever it holds.
        shape: of the bundle's, e.g. "832x480x81"; its first where None.

    Raises:
        BadInput: no bundle, no transformer in it, no prompts, or a folder that may not be replaced.
        VerificationFailed: a file of the bundle differs from its hash.
    """
    videos = DEFAULT if prompts is None else read_prompts(prompts)
    read = (path,) if prompts is None else (path, prompts)
    place = OutputFolder(output, STAGE, force=force, inputs=read)
    place.tell_what_is_deleted()
    subject = _subject(path, shape)
    progress = progress or Quiet()
    progress.start("goldens", len(videos), "videos")
    findings = []
    with place.make() as folder:
        goldens = []
        for index, arrays in enumerate(play(subject, videos)):
            goldens.append(write_golden(folder, index, videos[index], arrays))
            text = f"{', '.join(arrays)}; seed {videos[index].seed}"
            finding = _finding(f"video_{index}", goldens[-1].bytes, text)
            findings.append(finding.model_copy(update={"unit": "B", "label": "measured"}))
            progress.advance()
        record = GoldensRecord(
            made_of=made_of(subject),
            graphs=graphs_of(subject),
            runs_on=runs_on(subject),
            goldens=tuple(goldens),
        )
        (folder / RECORD).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
    progress.finish()
    return GoldensReport(
        action="make",
        bundle=BundleFacts.of(subject.bundle),
        folder=str(output),
        findings=tuple(findings),
    )


def check_goldens(
    path: Path,
    folder: Path,
    *,
    limit: float = 0.0,
    shape: str | None = None,
    progress: Progress | None = None,
) -> GoldensReport:
    """Play the accuracy set again and hold it against what was kept.

    Args:
        path: an engine bundle.
        folder: that `make_goldens` wrote.
        limit: largest good relative L2 difference of a step's latents or of the frames; 0 is equal
            to the byte.
        shape: of the bundle's, e.g. "832x480x81"; its first where None.

    Raises:
        BadInput: no bundle, no goldens, or a limit that is none. Goldens of other weights do not
            raise: they are refused by a finding.
        VerificationFailed: a file differs from its hash.
    """
    check_limit(limit, "--limit")
    subject = _subject(path, shape)
    findings = held(subject, folder, limit, progress or Quiet())
    return GoldensReport(
        action="check",
        bundle=BundleFacts.of(subject.bundle),
        folder=str(folder),
        findings=tuple(findings),
    )


def held(subject: Subject, folder: Path, limit: float, progress: Progress) -> list[Finding]:
    """Findings of `check_goldens`: one for each video, or what the goldens were not made of."""
    record = read_record(folder)
    if differences := differing(record.made_of, made_of(subject)):
        return [
            Finding(
                stage=STAGE,
                check=f"made_of.{name}",
                verdict="refused",
                text=f"goldens of other {name}: {said}",
            )
            for name, said in differences.items()
        ]
    differences = differing(record.graphs, graphs_of(subject))
    here = runs_on(subject)
    notes = [f"other graphs since: {', '.join(differences)}"] if differences else []
    notes += [] if here == record.runs_on else [f"made on {record.runs_on}, this is {here}"]
    progress.start("goldens", len(record.goldens), "videos")
    findings = []
    videos = [golden.video for golden in record.goldens]
    for index, arrays in enumerate(play(subject, videos)):
        kept = read_golden(folder, record.goldens[index])
        findings.append(compared(f"video_{index}", kept, arrays, limit, notes))
        progress.advance()
    progress.finish()
    return findings


def compared(
    check: str, kept: Arrays, made: Arrays, limit: float, notes: Sequence[str] = ()
) -> Finding:
    """One video against what was kept of it; names what parts first.

    Args:
        notes: what may explain a difference.
    """
    if not kept:
        return _finding(check, math.inf, "nothing was kept", limit, "wrong")
    order = [*kept, *(name for name in made if name not in kept)]
    parts = {name: difference(kept.get(name), made.get(name)) for name in order}
    first = next((name for name, value in parts.items() if not value <= limit), None)
    if first is None:
        worst = max(parts.values())
        text = "equal to the byte" if worst == 0 else "relative L2 difference, the largest"
        return _finding(check, worst, text, limit)
    told = "; ".join(f"{name} {value:.3g}" for name, value in parts.items() if not value <= limit)
    text = "; ".join([f"differs first at {first} (relative L2: {told})", *notes])
    return _finding(check, parts[first], text, limit, "wrong")


def difference(kept: Array | None, made: Array | None) -> float:
    """Relative L2 difference; 0 only for equal bytes, infinite where it cannot be had."""
    if kept is None or made is None or kept.shape != made.shape or kept.dtype != made.dtype:
        return math.inf
    if kept.tobytes() == made.tobytes():
        return 0.0
    expected = kept.astype(np.float64)
    norm = float(np.linalg.norm(expected))
    distance = float(np.linalg.norm(made.astype(np.float64) - expected))
    relative = distance / norm if norm else math.inf
    # Other zeros or other bytes of a NaN are other bytes.
    return relative or float(np.finfo(np.float64).tiny)


def check_limit(limit: float, option: str) -> None:
    """Refuse a limit that decides nothing.

    Args:
        option: what the user typed it for.

    Raises:
        BadInput: not a number within 0 .. `MAX_LIMIT`.
    """
    if not 0 <= limit <= MAX_LIMIT:
        raise BadInput(
            f"{limit:g} is not within 0 .. {MAX_LIMIT:g}",
            where=option,
            fix="a relative L2 difference: 0 asks for the same bytes",
        )


def _subject(path: Path, shape: str | None) -> Subject:
    subject = Subject(open_bundle(path, shape=shape))
    if "dit" not in subject.graphs:
        raise BadInput("the bundle has no transformer: no video", where=str(path))
    return subject


def _finding(
    check: str,
    value: float,
    text: str,
    limit: float | None = None,
    verdict: Verdict = "passed",
) -> Finding:
    return Finding(
        stage=STAGE, check=check, verdict=verdict, value=value, limit=limit, text=text,
        label="emulated",
    )  # fmt: skip
