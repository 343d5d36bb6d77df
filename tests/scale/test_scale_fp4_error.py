"""FP4 against bf16 on real latents of Wan 2.1, block by block."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

from fastwan.config import VideoShape
from fastwan.export.checkpoint.reader import Checkpoint

ROOT = Path(__file__).resolve().parents[2]
LATENTS = ROOT.parent / "shared" / "data" / "wan21_latents_16x16x40x64.safetensors"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fp4_error", ROOT / "scripts" / "fp4_error.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_error_of_each_block(tiny: Checkpoint, script: ModuleType) -> None:
    if not LATENTS.is_file():
        pytest.skip("no real Wan 2.1 latents in shared/data beside the checkout")
    latents, shape = script.read_latents(LATENTS, 128)
    errors = script.block_errors(tiny.transformer, tiny.dit_config, latents, shape)
    assert len(errors) == tiny.dit_config.num_layers
    for drift, alone in errors:
        assert 0.01 < alone < 0.4  # e2m1 has two to three bits: neither exact nor lost
        assert drift < 0.4


def test_a_lora_of_the_last_block_changes_that_blocks_error(
    tiny: Checkpoint, script: ModuleType, tmp_path: Path
) -> None:
    name, draw = "blocks.1.ffn.net.2", torch.Generator().manual_seed(0)
    outputs, inputs = tiny.transformer.shape(f"{name}.weight")
    pair = {
        "A": torch.randn(4, inputs, generator=draw),
        "B": torch.randn(outputs, 4, generator=draw),
    }
    lora = tmp_path / "style.safetensors"
    save_file({f"transformer.{name}.lora_{k}.weight": t for k, t in pair.items()}, lora)
    latents = torch.randn(1, 16, 2, 8, 8, generator=draw).bfloat16()
    shape = VideoShape(64, 64, 5)
    (first, last) = script.lora_errors(tiny, [f"{lora}:0.01"], latents, shape)
    assert first[:2] == first[2:]
    assert all(before != after for before, after in zip(last[:2], last[2:], strict=True))
    assert all(0.01 < error < 0.4 for error in (*first, *last))
    assert script.lora_errors(tiny, [], latents, shape) == [first[:2], last[:2]]
