"""Copies of the tiny checkpoint to damage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="session")
def tiny(tiny_checkpoint: Path) -> Path:
    """A tiny checkpoint; read only."""
    return tiny_checkpoint


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may change."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


@pytest.fixture
def edit_tensors() -> Callable[[Path, Callable[[dict[str, torch.Tensor]], object]], None]:
    """Rewrite a safetensors file after a function changed its tensors."""

    def edit(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, {"format": "pt"})

    return edit


@pytest.fixture
def edit_json() -> Callable[..., None]:
    """Rewrite a JSON file with some fields changed; None as a value stays null."""

    def edit(path: Path, **fields: Any) -> None:
        loaded = json.loads(path.read_text())
        loaded.update(fields)
        path.write_text(json.dumps(loaded))

    return edit
