"""`verify --device emulated`: where it runs, and its part of the report."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fastwan.bundle import Bundle
from fastwan.errors import BadInput
from fastwan.outputs import OutputFile
from fastwan.progress import Progress, stage
from fastwan.quality.emulated.checks import UNCHECKED, compare
from fastwan.quality.emulated.full_size import FullSize, Setting
from fastwan.quality.emulated.region_checks import REGIONS_CHECK, kinds, prompt_checks
from fastwan.quality.frames import picture_file, save_picture
from fastwan.quality.verify.report import Check, FP4Comparison, Planned, run_planned
from fastwan.quality.verify.steps import checked_sampler
from fastwan.quality.verify.subject import Subject
from fastwan.runtime.model.executor import Array

ON_CPU = "leave --device for the CPU reference"
"""What ``verify`` and ``compare`` can do without a GPU."""


@dataclass
class FullSizeResult:
    """What the full size adds to a report.

    Attributes:
        fp4: None where the run failed.
        videos: of the unquantised module and of the bundle.
    """

    checks: tuple[Check, ...] = ()
    fp4: FP4Comparison | None = None
    unchecked: tuple[str, ...] = UNCHECKED
    videos: list[Array] = field(default_factory=list)


def cuda_setting(bundle: Bundle) -> Setting:
    """The first visible GPU with the emulated plugin library.

    Raises:
        EnvironmentLacks: no GPU, or see `fastwan.runtime.emulated.platform.emulated_platform`.
    """
    import torch

    from fastwan.plugins.loader import PluginLibrary
    from fastwan.quality.emulated.module import kernel_form
    from fastwan.runtime.device.choice import resolve_device
    from fastwan.runtime.emulated.engines import Torch
    from fastwan.runtime.emulated.platform import emulated_platform

    resolve_device("emulated", ON_CPU)
    # What is verified is the kernels themselves, not what is played where they differ.
    platform = replace(emulated_platform(bundle), first_load=None)
    torch.backends.cuda.matmul.allow_tf32 = False
    attention = kernel_form(PluginLibrary(emulated=True), platform.processors)
    return Setting(platform, Torch(torch.device("cuda", 0)), attention)


def place_picture(bundle: Bundle, path: Path | None) -> OutputFile | None:
    """Where a picture goes, checked before the work; None where none was asked for.

    Raises:
        BadInput: the bundle has no decoder, or see `picture_file`.
    """
    if path is None:
        return None
    if "decoder" not in bundle.manifest.components:
        raise BadInput("no picture: the bundle has no decoder", where="--picture")
    return picture_file(path)


def check_full_size(
    subject: Subject, setting: Setting, *, picture: OutputFile | None, progress: Progress
) -> FullSizeResult:
    """Run a bundle at its own size and hold it against the module.

    Args:
        picture: where to write a frame beside the same one without FP4 beside their difference.
    """
    full = Subject(subject.bundle, subject.checkpoint)
    full.check_shape = full.shape
    result = FullSizeResult()

    def run() -> list[Check]:
        session = FullSize(full, setting)
        try:
            checks, result.fp4, result.videos = compare(session)
        finally:
            session.close()
        return checks

    with stage(progress, "verify full size"):
        result.checks = run_planned(Planned(names(full), run))
    if picture is not None and result.videos:
        save_picture(picture, *map(np.asarray, result.videos))
    return result


def names(subject: Subject) -> tuple[str, ...]:
    """The checks of the full size."""
    count = checked_sampler(subject).steps
    steps = [f"emulated_step_{index}" for index in range(count)]
    frames = ["emulated_frames"] if "decoder" in subject.present else []
    manifest = subject.manifest
    regions = [f"{REGIONS_CHECK}_{op}" for op in kinds(manifest)]
    read = [*regions, *prompt_checks(manifest)]
    return ("emulated_operands", *read, "emulated_blocks", *steps, *frames)
