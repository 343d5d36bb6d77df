"""Clocks, temperature and throttling of the GPU while a benchmark runs, if NVML can be asked."""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module, metadata
from typing import Any

from fastwan.schema import Record

_PACKAGES = (
    "fastwan-export", "torch", "numpy", "onnxruntime", "tensorrt-rtx-cu13", "tensorrt-cu13",
    "cuda-bindings",
)  # fmt: skip

_THROTTLE = {
    0x4: "power cap", 0x8: "hardware slowdown", 0x20: "thermal (software)",
    0x40: "thermal (hardware)", 0x80: "power brake",
}  # fmt: skip


class GpuState(Record):
    """A GPU at one moment; null where it does not answer."""

    sm_mhz: int | None = None
    memory_mhz: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    throttled: tuple[str, ...] | None = None
    """Reasons for lower clocks."""
    driver: str | None = None


class Environment(Record):
    """Versions that a measurement depends on."""

    python: str
    system: str
    packages: dict[str, str]


def gpu_state() -> GpuState | None:
    """What NVML says of the first GPU now; None without the package ``nvidia-ml-py`` or a GPU."""
    try:
        nvml: Any = import_module("pynvml")
        nvml.nvmlInit()
        gpu = nvml.nvmlDeviceGetHandleByIndex(0)
    except Exception:  # ImportError, or one of NVML's own classes
        return None
    questions: dict[str, Callable[[], object]] = {
        "sm_mhz": lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
        "memory_mhz": lambda: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM),
        "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
        "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,
        "throttled": lambda: _reasons(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu)),
        "driver": lambda: _text(nvml.nvmlSystemGetDriverVersion()),
    }
    state: dict[str, Any] = {}
    for name, ask in questions.items():
        # Not every GPU answers every question.
        with suppress(Exception):
            state[name] = ask()
    return GpuState(**state)


def environment() -> Environment:
    """Versions of Python, the system and the packages."""
    versions: dict[str, str] = {}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return Environment(
        python=platform.python_version(), system=platform.platform(), packages=versions
    )


def _reasons(bits: int) -> tuple[str, ...]:
    return tuple(name for bit, name in _THROTTLE.items() if bits & bit)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
