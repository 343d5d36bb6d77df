"""Which device runs: found through the CUDA driver itself, so that a CPU build of torch sees it."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import Literal

from fastwan.errors import BadInput, EnvironmentLacks


@dataclass(frozen=True)
class DeviceChoice:
    """A resolved device.

    Attributes:
        note: why "auto" became what it is; empty where the device was asked for by name.
    """

    name: Literal["cpu", "cuda"]
    note: str = ""


def cuda_device_count() -> int:
    """CUDA devices that the driver shows to this process; 0 without a driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def resolve_device(requested: str) -> DeviceChoice:
    """Resolve "auto", "cpu" or "cuda".

    Raises:
        BadInput: another name.
        EnvironmentLacks: "cuda" where no CUDA device is visible.
    """
    if requested not in ("auto", "cpu", "cuda"):
        raise BadInput(f"unknown device {requested!r}", where="device", fix="auto, cpu or cuda")
    if requested == "cpu":
        return DeviceChoice("cpu")
    if cuda_device_count():
        return DeviceChoice("cuda")
    if requested == "auto":
        return DeviceChoice("cpu", "no CUDA device is visible: running the CPU reference")
    raise EnvironmentLacks(
        "no CUDA device is visible",
        where="device",
        fix="use device cpu, or install NVIDIA's driver and check CUDA_VISIBLE_DEVICES",
    )
