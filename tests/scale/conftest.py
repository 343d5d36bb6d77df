"""A tiny checkpoint and the command line in a process of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from fastwan.export.checkpoint.reader import Checkpoint, open_checkpoint
from fastwan.export.checkpoint.synthetic import make_checkpoint


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scale") / "checkpoint"
    make_checkpoint(folder, size="tiny", seed=3)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Checkpoint:
    return open_checkpoint(str(tiny_folder), components=("dit",))


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a child process whose cache is its own."""
    return {**os.environ, "FASTWAN_CACHE_DIR": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def command() -> list[str]:
    return [sys.executable, "-m", "fastwan.cli"]
