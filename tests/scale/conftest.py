"""A tiny checkpoint and the command line in a process of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastwan.export.checkpoint.reader import Checkpoint, open_checkpoint
from testkit.tracing import quick_traces


@pytest.fixture(scope="session", autouse=True)
def trace_once() -> Iterator[None]:
    """Torch code of one shape is traced once; copies of the result are used."""
    with quick_traces():
        yield


@pytest.fixture(scope="session")
def tiny_folder(tiny_checkpoint: Path) -> Path:
    return tiny_checkpoint


@pytest.fixture(scope="session")
def tiny(tiny_checkpoint: Path) -> Checkpoint:
    return open_checkpoint(str(tiny_checkpoint), components=("dit",))


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a child process whose cache is its own."""
    return {**os.environ, "FASTWAN_CACHE_DIR": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def command() -> list[str]:
    return [sys.executable, "-m", "fastwan.cli"]
