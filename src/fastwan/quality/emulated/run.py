"""`verify --device emulated`: where it runs, and its part of the report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fastwan.errors import BadInput
from fastwan.progress import Progress, stage
from fastwan.quality.emulated.checks import UNCHECKED, FullSize, Setting, compare
from fastwan.quality.emulated.comparison import save_picture
from fastwan.quality.verify.report import Check, FP4Comparison, Planned, run_planned
from fastwan.quality.verify.subject import Subject
from fastwan.runtime.model.executor import Array
from fastwan.runtime.model.samplers import schedule_of


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


def cuda_setting() -> Setting:
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

    resolve_device("emulated")
    platform = emulated_platform()
    torch.backends.cuda.matmul.allow_tf32 = False
    return Setting(
        platform, Torch(torch.device("cuda", 0)), kernel_form(PluginLibrary(emulated=True))
    )


def check_full_size(
    subject: Subject, setting: Setting, *, picture: Path | None, progress: Progress
) -> FullSizeResult:
    """Run a bundle at its own size and hold it against the module.

    Args:
        picture: where to write a frame beside the same one without FP4 beside their difference.

    Raises:
        BadInput: a picture was asked for and the bundle has no decoder.
    """
    full = Subject(subject.bundle, subject.checkpoint)
    full.check_shape = full.shape
    result = FullSizeResult()
    if picture is not None and "decoder" not in full.present:
        raise BadInput("no picture: the bundle has no decoder", where="--picture")

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
    count = len(schedule_of(subject.manifest.sampler_spec()).steps)
    steps = [f"emulated_step_{index}" for index in range(count)]
    frames = ["emulated_frames"] if "decoder" in subject.present else []
    return ("emulated_operands", "emulated_regions", "emulated_blocks", *steps, *frames)
