"""What a run of the tests has once: a tiny checkpoint, a tiny bundle, and one thread a process."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from testkit.once import Once

if TYPE_CHECKING:
    from fastwan.engines.tensorrt_rtx import TensorRTRTX

# Before torch is loaded, here or in a child: several processes run tests, and threads of OpenMP
# that wait for each other spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_finish() -> None:
    """Leave what was imported out of every later search for garbage."""
    gc.freeze()


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt here and in children; in the background it is ignored.

    Likewise the end of a terminal, which is ignored under ``nohup``.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, before)
    signal.signal(signal.SIGHUP, hangup)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Makes folders once a run."""
    return Once(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def tiny_checkpoint(once: Once) -> Path:
    """A tiny checkpoint of all components; read only."""

    def make(folder: Path) -> None:
        from fastwan.export.checkpoint.synthetic import make_checkpoint

        make_checkpoint(folder, size="tiny")

    return once("tiny-checkpoint", make)


@pytest.fixture(scope="session")
def tiny_bundle(once: Once, tiny_checkpoint: Path) -> Path:
    """Its bundle for TensorRT-RTX with FP4 attention and no fusion, by the command line; read only.

    Built in a process of its own, with a hash seed of its own and without a cache.
    """
    for module, package in (("tensorrt_rtx", "tensorrt-rtx-cu13"), ("modelopt", "nvidia-modelopt")):
        if find_spec(module) is None:
            pytest.skip(f"{package} is not installed")

    def build(folder: Path) -> None:
        command = ["-m", "fastwan.cli", "build-engine", "--no-cache", "--fusion", "none"]
        done = subprocess.run(
            [sys.executable, *command, "--checkpoint", str(tiny_checkpoint), "-o", str(folder)],
            env={**os.environ, "PYTHONHASHSEED": "4711"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr

    return once("tiny-bundle", build)


@pytest.fixture(scope="session")
def lifted_bundle(once: Once, tiny_bundle: Path) -> Path:
    """The transformer and decoder of the tiny bundle, built anew with everything lifted."""

    def build(folder: Path) -> None:
        from testkit.fused_bundle import build_fused

        build_fused(tiny_bundle, folder, "all")

    return once("lifted-bundle", build)


@pytest.fixture(scope="session")
def data_bundle(once: Once, tiny_bundle: Path) -> Path:
    """That with weights as data; read only."""

    def build(folder: Path) -> None:
        from testkit.fused_bundle import build_fused

        build_fused(tiny_bundle, folder, "all", weights="data")

    return once("data-bundle", build)


@pytest.fixture(scope="session")
def builder() -> Iterator[TensorRTRTX]:
    """TensorRT-RTX, whose worker processes are kept from test to test."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
    from fastwan.engines.tensorrt_rtx import TensorRTRTX

    backend = TensorRTRTX()
    yield backend
    backend.close()
