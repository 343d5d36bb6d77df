"""Copies of the tiny checkpoint to damage."""

from __future__ import annotations

import json
import re
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


_WAN = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^condition_embedder\.(time|text)_embedder\.linear_1", r"\1_embedding.0"),
        (r"^condition_embedder\.(time|text)_embedder\.linear_2", r"\1_embedding.2"),
        (r"^condition_embedder\.time_proj", "time_projection.1"),
        (r"attn1\.to_out\.0", "self_attn.o"),
        (r"attn2\.to_out\.0", "cross_attn.o"),
        (r"attn1\.(?:to_)?", "self_attn."),
        (r"attn2\.(?:to_)?", "cross_attn."),
        (r"ffn\.net\.0\.proj", "ffn.0"),
        (r"ffn\.net\.2", "ffn.2"),
        (r"\.norm2\.", ".norm3."),
        (r"^scale_shift_table", "head.modulation"),
        (r"scale_shift_table$", "modulation"),
        (r"^proj_out", "head.head"),
    )
)


@pytest.fixture(scope="session")
def wan_name() -> Callable[[str], str]:
    """What Wan's own repository calls a tensor of diffusers' transformer."""

    def rename(name: str) -> str:
        for pattern, replacement in _WAN:
            name = pattern.sub(replacement, name)
        return name

    return rename
