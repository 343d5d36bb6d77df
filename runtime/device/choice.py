"""Which device runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastwan.bundle import Bundle
from fastwan.cuda_driver import cuda_device_count, driver_fault
from fastwan.errors import BadInput, EnvironmentLacks

DEVICES = ("auto", "cpu", "cuda", "emulated")
EMULATED = (
    "emulated: the numbers of a Blackwell GPU's FP4 arithmetic, by other instructions; its times "
    "say nothing of that GPU's"
)


@dataclass(frozen=True)
class DeviceChoice:
    """A resolved device.

    Attributes:
        note: why "auto" became what it is; empty where the device was asked for by name.
    """

    name: Literal["cpu", "cuda", "emulated"]
    note: str = ""


def resolve_device(requested: str, instead: str = "use device cpu") -> DeviceChoice:
    """Resolve "auto", "cpu", "cuda" or "emulated"; "auto" is never the last.

    A GPU that is there is used or refused: "auto" takes the CPU only where there is none.

    Args:
        instead: what the caller can do without a GPU, for the message.

    Raises:
        BadInput: another name.
        EnvironmentLacks: a GPU whose driver cannot be used, or "cuda" or "emulated" where no CUDA
            device is visible.
    """
    if requested not in DEVICES:
        raise BadInput(
            f"unknown device {requested!r}", where="device", fix="one of " + ", ".join(DEVICES)
        )
    if requested == "cpu":
        return DeviceChoice("cpu")
    if fault := driver_fault():
        raise EnvironmentLacks(
            fault,
            where="device",
            fix=f"install NVIDIA's driver 580 or newer{or_the_cpu(requested)}",
        )
    if cuda_device_count():
        if requested == "emulated":
            return DeviceChoice("emulated", EMULATED)
        return DeviceChoice("cuda")
    if requested == "auto":
        return DeviceChoice("cpu", "no CUDA device is visible: running the CPU reference")
    raise EnvironmentLacks(
        "no CUDA device is visible",
        where="device",
        fix=f"{instead}, or install NVIDIA's driver and check CUDA_VISIBLE_DEVICES",
    )


def or_the_cpu(requested: str) -> str:
    """What else a refusal of "auto" can say."""
    return ", or ask for the CPU reference with --device cpu" if requested == "auto" else ""


def require_emulable(bundle: Bundle) -> None:
    """Refuse a bundle that the emulated device cannot play.

    Raises:
        BadInput: its attention is inside an engine.
    """
    manifest = bundle.manifest
    if not manifest.regions:
        raise BadInput(
            f"the emulated device computes attention between engines, and {manifest.attention} is "
            "inside them",
            where=str(bundle.root),
            fix="build it for tensorrt-rtx with an FP4 attention",
        )
