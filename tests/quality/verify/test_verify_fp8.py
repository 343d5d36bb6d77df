"""An FP8 bundle: its checks pass, and each fails by the fault that it is there for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastwan.bundle import open_bundle
from testkit.once import Once
from testkit.tiny_bundles import FP8_MODEL, fp8_bundle

pytestmark = pytest.mark.trt

LINEAR = "blocks.0.ffn.fc1"
CHECKS = (
    "fp8_graph", "fp8_engines", "weights_bit_exact", "engine_plan", "attention_engines",
    "packing_bit_exact", "quantizer_recipe",
)  # fmt: skip
QUANTISER = "quantizer_bit_exact"


def make(once: Once, checkpoint: Path, activation: str) -> Path:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
    pytest.importorskip("modelopt", reason="nvidia-modelopt is not installed")
    return fp8_bundle(once, checkpoint, activation)


@pytest.fixture(scope="session")
def bundle_dir(once: Once, tiny_checkpoint: Path) -> Path:
    """The transformer alone, calibrated with drawn embeddings."""
    return make(once, tiny_checkpoint, "static")


@pytest.fixture(scope="session")
def fp8_checkpoint(tiny_checkpoint: Path) -> Any:
    from fastwan.export.checkpoint.reader import open_checkpoint

    return open_checkpoint(tiny_checkpoint, model=FP8_MODEL)


def test_an_untouched_copy_passes(mutant: Any, fp8_checkpoint: Any) -> None:
    mutant.rehash()
    assert mutant.failing(*CHECKS, QUANTISER) == set()
    assert mutant.failing(*CHECKS, checkpoint=fp8_checkpoint) == set()


def test_the_scales_of_a_calibration_stand_in_the_manifest(bundle_dir: Path) -> None:
    model = open_bundle(bundle_dir).manifest.onnx.model
    assert (model.recipe, model.activation) == ("fp8", "static")
    assert len(model.activation_scales) == 8 * model.dit.num_layers
    assert all(1e-4 < scale < 1 for scale in model.activation_scales.values())
    assert any("drawn prompt embeddings" in note for note in model.notes)


def test_scales_by_row_need_no_calibration(
    once: Once, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    from fastwan.quality.verify.run import run_checks
    from fastwan.quality.verify.subject import Subject

    folder = Path(shutil.copytree(make(once, tiny_checkpoint, "per_token"), tmp_path / "copy"))
    bundle = open_bundle(folder)
    assert bundle.manifest.onnx.model.activation_scales == {}
    report = run_checks(Subject(bundle), (*CHECKS, QUANTISER))
    assert {check.name for check in report.checks} == {"integrity", *CHECKS, QUANTISER}
    assert report.passed


def flip(raw: np.ndarray) -> np.ndarray:
    raw[1000] ^= 0x08
    return raw


def halve_all(raw: np.ndarray) -> np.ndarray:
    """One binade down, the largest code included."""
    return np.where(raw & 0x78, raw - 8, raw).astype(np.uint8)


def test_a_wrong_code_fails(mutant: Any, fp8_checkpoint: Any) -> None:
    name = f"{LINEAR}.weight"
    digest = mutant.weight(name, flip)
    mutant.rehash()
    assert mutant.failing("weights_bit_exact") == {"weights_bit_exact"}
    mutant.forge_digest(name, digest)
    assert mutant.failing("weights_bit_exact") == set()
    both = ("weights_bit_exact", "packing_bit_exact")
    assert mutant.failing(*both, checkpoint=fp8_checkpoint) == set(both)


def test_codes_that_the_recipe_cannot_make_fail_packing(mutant: Any) -> None:
    name = f"{LINEAR}.weight"
    mutant.forge_digest(name, mutant.weight(name, halve_all))
    mutant.rehash()
    assert mutant.failing("weights_bit_exact", "packing_bit_exact") == {"packing_bit_exact"}


def test_another_scale_of_an_activation_fails(mutant: Any) -> None:
    with mutant.graph("dit.onnx") as graph:
        (node,) = (n for n in graph.node if n.name == f"{LINEAR}/input/divisor")
        node.input[0] = "blocks.1.ffn.fc1.input_scale"
    mutant.rehash()
    assert mutant.failing(*CHECKS) == {"quantizer_recipe"}


def test_a_lost_fp8_linear_fails_fp8_engines(mutant: Any) -> None:
    with mutant.layers() as engines:
        (kernel,) = (k for k in engines["dit"] if k["name"].startswith(f"{LINEAR}/MatMul"))
        for tensor in (*kernel["inputs"], *kernel["constants"]):
            tensor["dtype"] = tensor["dtype"].replace("FP8", "BFloat16")
    mutant.rehash()
    assert mutant.failing(*CHECKS) == {"fp8_engines"}


def test_a_lost_fp8_attention_fails_attention_engines(mutant: Any) -> None:
    with mutant.layers() as engines:
        own = [k for k in engines["dit"] if "_mha" in k["name"]]
        fp8 = [k for k in own if any(t["dtype"] == "FP8" for t in k["inputs"])]
        assert len(fp8) == 2
        for tensor in fp8[0]["inputs"]:
            tensor["dtype"] = tensor["dtype"].replace("FP8", "BFloat16")
    mutant.rehash()
    assert mutant.failing(*CHECKS) == {"attention_engines"}
