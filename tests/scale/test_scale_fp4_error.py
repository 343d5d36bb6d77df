"""FP4 against bf16 on real latents of Wan 2.1, block by block."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from fastwan.export.checkpoint.reader import Checkpoint

ROOT = Path(__file__).resolve().parents[2]
LATENTS = ROOT.parent / "shared" / "data" / "wan21_latents_16x16x40x64.safetensors"
pytestmark = pytest.mark.slow


def test_error_of_each_block(tiny: Checkpoint) -> None:
    if not LATENTS.is_file():
        pytest.skip("no real Wan 2.1 latents in shared/data beside the checkout")
    spec = importlib.util.spec_from_file_location("fp4_error", ROOT / "scripts" / "fp4_error.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    latents, shape = script.read_latents(LATENTS, 128)
    errors = script.block_errors(tiny.transformer, tiny.dit_config, latents, shape)
    assert len(errors) == tiny.dit_config.num_layers
    for drift, alone in errors:
        assert 0.01 < alone < 0.4  # e2m1 has two to three bits: neither exact nor lost
        assert drift < 0.4
