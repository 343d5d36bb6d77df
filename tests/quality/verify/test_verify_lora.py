"""A bundle with a LoRA: only what it changes is built again, and verify holds it to the files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastwan.build import BuildSpec, build_engine
from fastwan.bundle import open_bundle
from fastwan.errors import BadInput
from fastwan.export.checkpoint.reader import open_checkpoint
from fastwan.files import sha256_file
from fastwan.manifest import Manifest
from fastwan.progress import Quiet
from fastwan.quality.verify.lora import adapted, lora_blocks
from fastwan.quality.verify.run import run_checks, verify_bundle
from fastwan.quality.verify.subject import Subject

pytestmark = pytest.mark.trt

MODEL, LINEAR = "FastWan-QAD-1.3B", "blocks.1.ffn.net.2"


@pytest.fixture
def lora(tiny_checkpoint: Path, tmp_path: Path) -> str:
    """A file that changes one linear of the last block by about a tenth."""
    weight = open_checkpoint(tiny_checkpoint, components=("dit",)).transformer
    outputs, inputs = weight.shape(f"{LINEAR}.weight")
    generator = torch.Generator().manual_seed(0)
    scale = (0.05 * float(weight.read(f"{LINEAR}.weight").float().std())) ** 0.5
    tensors = {
        f"transformer.{LINEAR}.lora_A.weight": scale * torch.randn(4, inputs, generator=generator),
        f"transformer.{LINEAR}.lora_B.weight": scale * torch.randn(outputs, 4, generator=generator),
    }
    path = tmp_path / "style.safetensors"
    save_file(tensors, path)
    return str(path)


@pytest.fixture
def built(
    tiny_checkpoint: Path, lora: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Manifest]:
    """Manifests of builds in a row over one cache."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
    pytest.importorskip("modelopt", reason="nvidia-modelopt is not installed")
    monkeypatch.setenv("FASTWAN_CACHE_DIR", str(tmp_path / "cache"))

    def build(name: str, *files: str) -> Manifest:
        spec = BuildSpec(
            str(tiny_checkpoint),
            tmp_path / name,
            model=MODEL,
            components=("dit",),
            fusion="none",
            lora=files,
        )
        return build_engine(spec, Quiet())

    builds = {"plain": (), "merged": (lora,), "again": (f"{lora}:1.0",)}
    return {name: build(name, *files) for name, files in builds.items()}


def test_only_what_a_lora_changes_is_built_again_and_verify_knows_it(
    built: dict[str, Manifest], tiny_checkpoint: Path, lora: str, tmp_path: Path
) -> None:
    plain, merged, again = (built[name] for name in ("plain", "merged", "again"))
    assert plain.build.cached == ()
    # The last linear of the last block lies in the last engine alone.
    assert set(merged.engines) - set(merged.build.cached) == {list(merged.engines)[-1]}
    assert set(again.build.cached) == set(again.engines)
    (adapter,) = merged.onnx.model.adapters
    assert (adapter.file, adapter.sha256) == ("style.safetensors", sha256_file(Path(lora)))
    assert (adapter.scale, adapter.ranks, adapter.tensors) == (1.0, (4,), 1)
    assert plain.onnx.model.adapters == ()
    before, after = plain.onnx.tensor_digests, merged.onnx.tensor_digests
    changed = {name for name, digest in after.items() if digest != before[name]}
    assert "blocks.1.ffn.fc2.weight" in changed
    assert all(name.startswith("blocks.1.ffn.fc2.weight") for name in changed)

    checkpoint = open_checkpoint(tiny_checkpoint, components=("dit",))
    bundle, model = open_bundle(tmp_path / "merged"), merged.onnx.model
    with_lora = Subject(bundle, adapted(checkpoint, model, (lora,)))
    for subject, passed in ((with_lora, True), (Subject(bundle, checkpoint), False)):
        report = run_checks(subject, ("weights_bit_exact",))
        assert [check.passed for check in report.checks] == [True, passed]
    with pytest.raises(BadInput, match=r"pass --lora style\.safetensors:1, the same"):
        adapted(checkpoint, model, (f"{lora}:0.5",))
    with pytest.raises(BadInput, match="leave it out"):
        adapted(checkpoint, plain.onnx.model, (lora,))

    (block,) = lora_blocks(with_lora)
    assert (block.block, block.linears) == (1, 1)
    assert 0.02 < block.change < 0.5
    assert 0.05 < block.error_without < 0.15
    assert block.error_with == pytest.approx(block.error_without, rel=0.1)
    assert block.error_with != block.error_without


def test_a_lora_without_a_checkpoint_has_nothing_to_compare(tiny_bundle: Path) -> None:
    assert lora_blocks(Subject(open_bundle(tiny_bundle))) == ()
    with pytest.raises(BadInput, match="pass --checkpoint too"):
        verify_bundle(tiny_bundle, lora=("style.safetensors",))
