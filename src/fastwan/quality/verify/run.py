"""`verify_bundle`: plan the checks that a bundle calls for, and run them in order."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from fastwan.bundle import open_bundle
from fastwan.export.attentions import find_attention
from fastwan.progress import Progress, Quiet, stage
from fastwan.quality.verify import graphs, linears, steps, weights
from fastwan.quality.verify.components import Runtime, check_decoder, check_text_encoder
from fastwan.quality.verify.engine_plan import check_attention_engines, check_engine_plan
from fastwan.quality.verify.files import INTEGRITY, check_integrity
from fastwan.quality.verify.lora import adapted, lora_blocks
from fastwan.quality.verify.recipe_checks import recipe_checks
from fastwan.quality.verify.report import Check, Planned, VerifyReport, not_run, run_planned
from fastwan.quality.verify.sampler import check_sampler
from fastwan.quality.verify.subject import Subject
from fastwan.quality.verify_options import check_options
from fastwan.runtime.model.decode import Decoder
from fastwan.runtime.model.executor import Array
from fastwan.schema import BundleFacts
from fastwan.tables import known


def verify_bundle(
    path: Path | str,
    *,
    checkpoint: str | None = None,
    taehv: Path | None = None,
    lora: Sequence[str] = (),
    device: str = "cpu",
    picture: Path | None = None,
    checks: Sequence[str] = (),
    shape: str | None = None,
    videos: list[Array] | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Hold a bundle against the reference, on a CPU and, if asked, at its full size on a GPU.

    A check that fails does not raise. If a file differs from its hash nothing else is parsed, and
    every other check has failed as well.

    Args:
        path: an engine bundle.
        checkpoint: folder or Hugging Face id of what the bundle claims to be made of; an id without
            revision is taken at the commit that the manifest names. Its weights are then quantised
            anew; without it the digests in the manifest are trusted.
        taehv: weight file of the decoder, where the checkpoint has none.
        lora: the LoRA files that the bundle was built with, as FILE[:scale], to compare with a
            checkpoint.
        device: "cpu", or "emulated" for the bundle's own size too, on a GPU that emulates FP4.
        picture: with "emulated", a PNG of a frame beside the same one without FP4 beside their
            difference.
        checks: names of those to run, see `list_checks`; by default all. Files are always held
            against their hashes first.
        shape: of the bundle's, e.g. "832x480x81"; its first where None.
        videos: takes the two videos of "emulated", [F, H, W, 3] uint8: without FP4 and with it.

    Raises:
        BadInput: no bundle there, its manifest is not one of this tool, the checkpoint cannot be
            opened, or the bundle has no check of a name.
        EnvironmentLacks: a package or the GPU is missing, or the hub cannot be reached.
    """
    check_options(device, checkpoint, taehv=taehv, lora=lora, picture=picture, checks=checks)
    bundle = open_bundle(path, sizes=False, shape=shape)
    setting = place = None
    if device == "emulated":
        from fastwan.quality.emulated.run import cuda_setting, place_picture
        from fastwan.runtime.device.choice import require_emulable

        setting = cuda_setting(bundle)
        require_emulable(bundle)
        place = place_picture(bundle, picture)
    opened = None
    if checkpoint is not None:
        from fastwan.export.checkpoint.reader import open_checkpoint

        origin = bundle.manifest.onnx.model.checkpoint
        same = origin is not None and origin.repo == checkpoint and not Path(checkpoint).exists()
        opened = open_checkpoint(
            checkpoint,
            taehv=taehv,
            components=bundle.manifest.components,
            revision=origin.commit if origin is not None and same else None,
            model=bundle.manifest.onnx.model.name,
        )
        opened = adapted(opened, bundle.manifest.onnx.model, lora)
    subject = Subject(bundle, opened)
    for name in checks:
        known(names_of(subject), name, "check")
    report = run_checks(subject, checks or None, progress)
    if report.checks[0].passed:
        report = report.model_copy(update={"lora": lora_blocks(subject)})
    if setting is None or not report.checks[0].passed:
        return report
    from fastwan.quality.emulated.run import check_full_size

    full = check_full_size(subject, setting, picture=place, progress=progress or Quiet())
    if videos is not None:
        videos += full.videos
    return report.model_copy(
        update={
            "checks": (*report.checks, *full.checks),
            "fp4": full.fp4,
            "unchecked": full.unchecked,
        }
    )


def list_checks(path: Path | str) -> tuple[str, ...]:
    """Names of the checks of a bundle, in the order in which they run.

    Raises:
        BadInput: no bundle there, or its manifest is not one of this tool.
    """
    return names_of(Subject(open_bundle(path, sizes=False)))


def names_of(subject: Subject) -> tuple[str, ...]:
    """Names of the checks of a bundle, `integrity` first."""
    return (INTEGRITY, *(name for planned in plan(subject) for name in planned.names))


def run_checks(
    subject: Subject, names: Collection[str] | None = None, progress: Progress | None = None
) -> VerifyReport:
    """Run the checks of a bundle, `integrity` always and first.

    Args:
        names: run only these besides; by default all that `plan` lists.
    """
    progress = progress or Quiet()
    integrity = check_integrity(subject.bundle)
    checks = [integrity]
    for planned in plan(subject):
        if names is not None and not set(names) & set(planned.names):
            continue
        if not integrity.passed:
            checks += [not_run(name, "files differ from the manifest") for name in planned.names]
            continue
        with stage(progress, f"verify {planned.names[0]}"):
            checks += run_planned(planned)
    return VerifyReport(bundle=BundleFacts.of(subject.bundle), checks=tuple(checks))


def plan(subject: Subject) -> list[Planned]:
    """The checks of a bundle, cheap ones first; they follow from its components and its recipe."""

    def one(name: str, check: Callable[[Subject], Check]) -> Planned:
        return Planned((name,), lambda: (check(subject),))

    planned = []
    present = subject.present
    for gate in linears.gates(subject):
        planned += [
            one(f"{gate.label.lower()}_graph", partial(linears.check_graph, gate=gate)),
            one(linears.engines_check(gate), partial(linears.check_engines, gate=gate)),
        ]
    planned.append(one("weights_bit_exact", weights.check_weights))
    if "dit" in present:
        planned.append(one("attention_nodes", graphs.check_attention_nodes))
        planned.append(one("engine_plan", check_engine_plan))
        if find_attention(subject.manifest.attention).wanted:
            planned.append(one("attention_engines", check_attention_engines))
        planned += recipe_checks(subject)
        if subject.check_shape != subject.shape:
            planned.append(one("graph_structure", graphs.check_structure))
        planned.append(
            Planned(("graph_fp32", "graph_bf16"), lambda: graphs.check_unquantised(subject))
        )
        if subject.check_shape == subject.shape:
            planned.append(one("cpu_reference", graphs.check_cpu_reference))
        planned.append(one("sampler", check_sampler))
    if "decoder" in present:
        planned.append(one("decoder", check_decoder))
    if "text_encoder" in present:
        planned.append(one("text_encoder", check_text_encoder))
    if "dit" in present:
        names = (*steps.step_names(subject), *(("frames",) if "decoder" in present else ()))
        planned.append(Planned(names, lambda: _video(subject)))
    return planned


def _video(subject: Subject) -> Sequence[Check]:
    runtime = Runtime(subject)
    dit = runtime.dit(lambda: subject.lowered.executors(subject.lowered.parts))
    with runtime.decoder() as decoder:
        decode = None if decoder is None else _decode_with(decoder)
        return steps.check_video(subject, dit, runtime.embeds(), decode)


def _decode_with(decoder: Decoder[Array]) -> Callable[[Array], Array]:
    def decode(latents: Array) -> Array:
        return np.stack([frame.copy() for frame in decoder.frames(latents)])

    return decode
