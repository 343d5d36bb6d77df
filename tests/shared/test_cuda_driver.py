"""The driver's answers, over a stand-in for its library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastwan import cuda_driver
from fastwan.cuda_driver import (
    compute_capability,
    cuda_device_count,
    driver_cuda_version,
    driver_fault,
)


def put(pointer: Any, value: int) -> int:
    pointer._obj.value = value
    return 0


def working() -> SimpleNamespace:
    """Two devices: the first of compute capability 12.1, the second of 9.0."""
    capabilities = {0: {75: 12, 76: 1}, 1: {75: 9, 76: 0}}
    return SimpleNamespace(
        cuInit=lambda flags: 0,
        cuDriverGetVersion=lambda version: put(version, 13020),
        cuDeviceGetCount=lambda count: put(count, 2),
        cuDeviceGet=lambda handle, index: put(handle, index) if index < 2 else 101,
        cuDeviceGetAttribute=lambda value, attribute, handle: put(
            value, capabilities[handle.value][attribute]
        ),
    )


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    library = working()
    monkeypatch.setattr(cuda_driver.ctypes, "CDLL", lambda name: library)
    return library


def test_devices_are_counted_and_told_apart(driver: SimpleNamespace) -> None:
    assert cuda_device_count() == 2
    assert [compute_capability(), compute_capability(1), compute_capability(2)] == [121, 90, None]


def test_the_driver_tells_its_version(driver: SimpleNamespace) -> None:
    assert driver_cuda_version() == "13.2"
    driver.cuDriverGetVersion = refused
    assert driver_cuda_version() is None


def refused(*_: object) -> int:
    return 100


@pytest.mark.parametrize(
    ("function", "count", "capability"),
    [
        ("cuInit", 0, None),
        ("cuDeviceGetCount", 0, 121),
        ("cuDeviceGet", 2, None),
        ("cuDeviceGetAttribute", 2, None),
    ],
)
def test_a_call_that_fails_is_no_device(
    driver: SimpleNamespace, function: str, count: int, capability: int | None
) -> None:
    setattr(driver, function, refused)
    assert (cuda_device_count(), compute_capability()) == (count, capability)


def absent(name: str) -> SimpleNamespace:
    raise OSError(f"{name}: cannot open shared object file")


@pytest.mark.parametrize("library", [absent, lambda name: SimpleNamespace()])
def test_without_a_driver_there_is_no_device(
    monkeypatch: pytest.MonkeyPatch, library: Callable[[str], SimpleNamespace]
) -> None:
    monkeypatch.setattr(cuda_driver.ctypes, "CDLL", library)
    assert (cuda_device_count(), compute_capability(), driver_cuda_version()) == (0, None, None)


@pytest.mark.parametrize(
    ("code", "version", "fault"),
    [
        (0, 13000, ""),
        (0, 12080, "knows CUDA 12.8, this needs 13.0"),
        (100, 12080, ""),
        (34, 13000, ""),
        (803, 13000, "does not start: CUDA error 803"),
    ],
)
def test_a_driver_that_cannot_be_used_says_why(
    driver: SimpleNamespace, code: int, version: int, fault: str
) -> None:
    driver.cuInit = lambda flags: code
    driver.cuDriverGetVersion = lambda pointer: put(pointer, version)
    assert fault in driver_fault()
    assert bool(fault) == bool(driver_fault())


@pytest.mark.parametrize(("file", "there"), [("nvidia0", True), ("nvidia-modeset", False)])
def test_a_gpu_without_the_drivers_library_is_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str, there: bool
) -> None:
    (tmp_path / file).touch()
    monkeypatch.setattr(cuda_driver.ctypes, "CDLL", absent)
    monkeypatch.setattr(cuda_driver, "_DEVICES", tmp_path)
    assert ("libcuda" in driver_fault()) is there
