"""Two bundles on a device, one after the other, for the numbers of `compare`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastwan.bundle import Bundle
from fastwan.errors import BadInput
from fastwan.quality.compare.as_built import AsBuilt
from fastwan.quality.compare.numeric import (
    Compared,
    OpenPlayer,
    compare_numeric,
    require_comparable,
)
from fastwan.quality.compare.players import CpuPlayer, DevicePlayer, Player
from fastwan.quality.emulated.full_size import Setting
from fastwan.quality.emulated.run import ON_CPU, cuda_setting
from fastwan.quality.verify.components import PROMPT
from fastwan.quality.verify.subject import Subject
from fastwan.runtime.device.choice import require_emulable, resolve_device
from fastwan.runtime.model.noise import DEFAULT_SEED
from fastwan.runtime.model.schedule import Schedule


class Players:
    """Two bundles that can be played side by side.

    Args:
        device: "cpu", the CPU reference at a small size; "emulated" or "cuda" at the bundles' own.

    Raises:
        BadInput: they cannot be, or there is no such device.
    """

    def __init__(self, left: Bundle, right: Bundle, device: str) -> None:
        self._left, self._right = AsBuilt(left), AsBuilt(right)
        self._device = device
        self._open = opener(device)
        if device != "cpu":
            for subject in (self._left, self._right):
                subject.check_shape = subject.shape
        if device == "emulated":
            for bundle in (left, right):
                require_emulable(bundle)
        require_comparable(self._left, self._right)

    def compare(self, *, prompts: Sequence[str], seeds: Sequence[int], **options: Any) -> Compared:
        """Play both and compare them, see `compare_numeric`.

        Args:
            prompts: by default one sentence.
            seeds: by default the published one.
            options: the others of `compare_numeric`.
        """
        return compare_numeric(
            self._left,
            self._right,
            open_player=self._open,
            device=self._device,
            prompts=prompts or (PROMPT,),
            seeds=seeds or (DEFAULT_SEED,),
            **options,
        )


def opener(device: str) -> OpenPlayer:
    """What opens a bundle on a device.

    Raises:
        BadInput: no such device.
    """
    settings: dict[str, Callable[[Bundle], Setting]] = {
        "emulated": cuda_setting,
        "cuda": _gpu_setting,
    }
    if device == "cpu":
        return CpuPlayer
    if device not in settings:
        raise BadInput(f"unknown device {device!r}", where="--device", fix="cpu, emulated or cuda")

    def open_player(subject: Subject, schedule: Schedule) -> Player:
        return DevicePlayer(subject, schedule, settings[device](subject.bundle))

    return open_player


def _gpu_setting(bundle: Bundle) -> Setting:
    """The first visible GPU, as `generate` plays on it.

    Raises:
        EnvironmentLacks: see `fastwan.runtime.device.platforms.cuda_platform`.
    """
    import torch

    from fastwan.runtime.device.platforms import cuda_platform
    from fastwan.runtime.emulated.engines import Torch

    resolve_device("cuda", ON_CPU)
    attention = Subject(bundle).attention.reference
    return Setting(cuda_platform(bundle), Torch(torch.device("cuda", 0)), attention)
