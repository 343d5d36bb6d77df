"""CUDA devices and driver, asked of the driver itself: no GPU build of a package is needed."""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path
from typing import Any

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
OLDEST_CUDA = (13, 0)
"""What the driver has to know: TensorRT-RTX, cuda-bindings and our library are of CUDA 13."""

_DEVICES = Path("/dev")
_NO_DEVICE = (34, 100)  # CUDA_ERROR_STUB_LIBRARY, CUDA_ERROR_NO_DEVICE
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


def cuda_device_count() -> int:
    """CUDA devices that the driver shows to this process; 0 without a driver."""
    driver = _driver()
    count = ctypes.c_int()
    if driver is None or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def driver_cuda_version() -> str | None:
    """Version of CUDA that the driver knows, e.g. "13.0"; None without a driver."""
    driver = _driver()
    version = ctypes.c_int()
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def compute_capability(device: int = 0) -> int | None:
    """Compute capability of a CUDA device, e.g. 120 for 12.0; None without that device."""
    driver = _driver()
    handle, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver is None or driver.cuDeviceGet(ctypes.byref(handle), device) != 0:
        return None
    for value, attribute in ((major, _CAPABILITY_MAJOR), (minor, _CAPABILITY_MINOR)):
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle) != 0:
            return None
    return major.value * 10 + minor.value


def driver_fault() -> str:
    """Why a GPU that is there cannot be used; empty where it can, or where there is none.

    A GPU is there where the driver counts one, or where its device file is; one that
    ``CUDA_VISIBLE_DEVICES`` hides is not.
    """
    try:
        code = ctypes.CDLL(_LIBRARY).cuInit(0)
    except (OSError, AttributeError):
        seen = any(re.fullmatch(r"nvidia\d+", each.name) for each in _DEVICES.glob("nvidia*"))
        return f"there is a GPU, and the driver's {_LIBRARY} is missing" if seen else ""
    if code in _NO_DEVICE:
        return ""
    if code != 0:
        return f"NVIDIA's driver does not start: CUDA error {code}"
    version = driver_cuda_version()
    if version is None or not cuda_device_count():
        return ""
    if tuple(map(int, version.split("."))) < OLDEST_CUDA:
        oldest = ".".join(map(str, OLDEST_CUDA))
        return f"NVIDIA's driver knows CUDA {version}, this needs {oldest}"
    return ""


def _driver() -> Any:
    """The driver's library, initialised; None where there is none or it finds no device."""
    try:
        driver = ctypes.CDLL(_LIBRARY)
        return driver if driver.cuInit(0) == 0 else None
    except (OSError, AttributeError):  # not installed, or a stub without the function
        return None
