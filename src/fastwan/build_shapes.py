"""``build-engine`` for any number of shapes: a bundle of each, and one bundle of them all."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from fastwan.build import BuildSpec, Caches, build_engine
from fastwan.bundle import Bundle
from fastwan.config import VideoShape
from fastwan.engines.build import peak_rss_bytes
from fastwan.engines.builder import KnownPlan
from fastwan.engines.cache import EngineCache
from fastwan.errors import BadInput, FastWanWarning
from fastwan.export.cache import ExportCache
from fastwan.manifest import MANIFEST, MAX_SHAPES, BuildRecord, Manifest
from fastwan.merge import Merger
from fastwan.outputs import OutputFolder
from fastwan.progress import Progress, stage
from fastwan.shapes import shape_text
from fastwan.staging import staging


def build_bundle_of_shapes(
    spec: BuildSpec,
    progress: Progress,
    *,
    plans: Mapping[VideoShape, Mapping[str, KnownPlan]] | None = None,
    read: Collection[Path] = (),
) -> Manifest:
    """Build a bundle of the shapes of `spec`.

    Of several, each is built as if it were alone, and files and tensors that are equal are kept
    once. No weight is quantised and no engine built twice, whether or not the user's cache is used.

    Args:
        plans, read: see `build_engine`.

    Raises:
        BadInput: a text encoder alone has no shape, too many shapes, or see `build_engine`.
        EnvironmentLacks, VerificationFailed: see there.
    """
    if len(spec.shapes) < 2:
        return build_engine(spec, progress, plans=plans, read=read)
    started = time.monotonic()
    further = tuple(name for name in spec.components if name != "text_encoder")
    if not further:
        raise BadInput("a text encoder has no shape", where="--shape", fix="leave it out")
    if len(spec.shapes) > MAX_SHAPES:
        raise BadInput(
            f"{len(spec.shapes)} shapes", where="--shape", fix=f"at most {MAX_SHAPES} in a bundle"
        )
    output = OutputFolder(spec.output, "bundle", spec.force, inputs=(*spec.weight_files, *read))
    output.tell_what_is_deleted()
    with staging(output.target.parent) as folder:
        caches = None
        if not spec.use_cache:
            caches = Caches(ExportCache(folder / "cache"), EngineCache(folder / "cache"))
        one = replace(spec, force=False)
        built: list[Bundle] = []
        for shape in spec.shapes:
            place = folder / shape_text(shape)
            one = replace(one, shapes=(shape,), output=place)
            with warnings.catch_warnings() if built else nullcontext():
                if built:  # The same checkpoint has been told of.
                    warnings.simplefilter("ignore", FastWanWarning)
                made = build_engine(one, progress, plans=plans, read=read, caches=caches)
            built.append(Bundle(place, made))
            one = replace(one, components=further, fusion=made.fusion, weights=made.weights)
        with output.make_recorded() as (whole, known):
            begin = time.monotonic()
            with stage(progress, "share files", len(built) - 1, "shapes"):
                manifest = _merged(built, whole, progress)
            took = {"share files": time.monotonic() - begin}
            build = _build_record([each.manifest.build for each in built], took, started)
            manifest = manifest.model_copy(update={"build": build})
            text = manifest.model_dump_json(indent=1) + "\n"
            (whole / MANIFEST).write_text(text, encoding="utf-8")
            known.update((n, (each.bytes, each.sha256)) for n, each in manifest.files.items())
    return manifest


def _merged(built: list[Bundle], folder: Path, progress: Progress) -> Manifest:
    merger = Merger(built[0], folder)
    for part in built[1:]:
        merger.add(part)
        progress.advance(1, str(part.root.name))
    update = {"files": dict(sorted(merger.files.items())), "shapes": tuple(merger.shapes)}
    merged = built[0].manifest.model_copy(update=update)
    return Manifest.model_validate_json(merged.model_dump_json())


def _build_record(
    builds: list[BuildRecord], stages: Mapping[str, float], started: float
) -> BuildRecord:
    """What all of it took, by stage; engines that were taken of one shape for another count."""
    seconds = Counter(stages)
    for each in builds:
        seconds.update(each.stages)
    return BuildRecord(
        seconds=time.monotonic() - started,
        peak_rss_bytes=peak_rss_bytes(),
        stages=dict(seconds),
        cached=tuple(dict.fromkeys(name for each in builds for name in each.cached)),
    )
