"""Weights exchanged: the bundle that a build of the other checkpoint makes, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import fastwan.engines.builder
from fastwan.build import BuildSpec, build_engine
from fastwan.bundle import open_bundle
from fastwan.cli import main
from fastwan.errors import BadInput, EnvironmentLacks, VerificationFailed
from fastwan.export.checkpoint.reader import open_checkpoint
from fastwan.export.checkpoint.synthetic import make_checkpoint
from fastwan.manifest import MANIFEST, Manifest
from fastwan.ownership import RECORD
from fastwan.progress import Quiet
from fastwan.swap import SwapSpec, swap_weights

pytestmark = pytest.mark.trt

CHECKPOINT_FILES = ("config.json", "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the same shapes with other weights."""
    folder = tmp_path_factory.mktemp("other") / "checkpoint"
    make_checkpoint(folder, size="tiny", seed=1)
    return folder


@pytest.fixture(scope="module")
def swapped(data_bundle: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("swapped") / "bundle"
    swap_weights(SwapSpec(data_bundle, str(other), out, use_cache=False), Quiet())
    return out


def files_of(folder: Path) -> dict[str, bytes]:
    """Contents by path, without the two that say how long a build took."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST, RECORD)
    }


def test_it_is_the_bundle_of_a_fresh_build(
    swapped: Path, data_bundle: Path, other: Path, tmp_path: Path
) -> None:
    built = tmp_path / "built"
    spec = BuildSpec(
        str(other), built, fusion="all", components=("dit", "decoder"), use_cache=False
    )
    build_engine(spec, Quiet())
    assert files_of(swapped) == files_of(built)
    manifests = [open_bundle(folder).manifest for folder in (swapped, built)]
    first, second = ({**m.model_dump(), "build": None} for m in manifests)
    assert first == second
    assert files_of(swapped)["onnx/dit.data"] != files_of(data_bundle)["onnx/dit.data"]


def test_what_holds_no_weight_is_taken_over(swapped: Path, data_bundle: Path) -> None:
    manifest = open_bundle(swapped).manifest
    before = open_bundle(data_bundle).manifest
    plans = {each.file for each in manifest.engines.values() if each.constants}
    assert plans
    assert {f"dit/{name}.engine" for name in manifest.build.cached} == plans
    same = {n for n, each in manifest.files.items() if before.files.get(n) == each}
    assert plans <= same
    # All that holds a weight is another one.
    held = {each.file for each in manifest.engines.values() if not each.constants}
    assert held
    assert not held & same


def test_its_output_is_whole_or_not_there(
    data_bundle: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    out = tmp_path / "bundle"
    monkeypatch.setattr(fastwan.engines.builder.shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        swap_weights(SwapSpec(data_bundle, str(other), out, use_cache=False), Quiet())
    assert not out.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def copied(data_bundle: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copied"
    shutil.copytree(data_bundle, folder)
    return folder


def other_layers(fields: dict[str, Any]) -> None:
    fields["onnx"]["model"]["dit"]["num_layers"] += 1


def other_recipe(fields: dict[str, Any]) -> None:
    fields["onnx"]["model"]["recipe"] = "bf16"


def other_decoder(fields: dict[str, Any]) -> None:
    fields["onnx"]["model"]["decoder"] = None


def inline_weights(fields: dict[str, Any]) -> None:
    fields["weights"] = "inline"


def other_tool(fields: dict[str, Any]) -> None:
    fields["tool_version"] = "0.0.9"


def other_builder(fields: dict[str, Any]) -> None:
    fields["versions"]["tensorrt-rtx"] = "1.6"


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (
            other_layers,
            BadInput,
            "the transformer of the checkpoint is not that of the bundle: num_layers 2, not 3",
        ),
        (
            other_recipe,
            BadInput,
            "the recipe of the checkpoint is not that of the bundle: nvfp4, not bf16",
        ),
        (other_decoder, BadInput, "the decoder of the checkpoint is not that"),
        (inline_weights, BadInput, "holds its weights in engines"),
        (other_tool, EnvironmentLacks, r"built by fastwan-export 0\.0\.9"),
        (other_builder, EnvironmentLacks, r"tensorrt-rtx 1\.6; here is"),
    ],
)
def test_a_bundle_that_does_not_fit_is_refused_before_any_work(
    copied: Path,
    other: Path,
    tmp_path: Path,
    fault: Callable[[dict[str, Any]], None],
    error: type[Exception],
    message: str,
) -> None:
    path = copied / MANIFEST
    fields = json.loads(path.read_text())
    fault(fields)
    path.write_text(json.dumps(fields))
    out = tmp_path / "bundle"
    with pytest.raises(error, match=message):
        swap_weights(SwapSpec(copied, str(other), out), Quiet())
    assert not out.exists()


def fewer_layers(folder: Path) -> None:
    """Leave the last block out."""
    config, weights = (folder / "transformer" / name for name in CHECKPOINT_FILES)
    fields = json.loads(config.read_text())
    last = fields["num_layers"] - 1
    config.write_text(json.dumps(fields | {"num_layers": last}))
    tensors = load_file(weights)
    save_file({n: t for n, t in tensors.items() if not n.startswith(f"blocks.{last}.")}, weights)


def fp8_model(folder: Path) -> None:
    """Let the checkpoint say that it is the model whose linears are FP8."""
    path = folder / "model_index.json"
    origin = {"_name_or_path": "FastVideo/FastWan-QAD-FP8-1.3B"}
    path.write_text(json.dumps(json.loads(path.read_text()) | origin))


def nothing(folder: Path) -> None:
    """Leave it as it is."""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nothing, ""),
        (fewer_layers, "the transformer of the checkpoint is not that of the bundle: num_layers 1"),
        (fp8_model, "the recipe of the checkpoint is not that of the bundle: fp8, not nvfp4"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(
    data_bundle: Path,
    other: Path,
    tmp_path: Path,
    change: Callable[[Path], None],
    message: str,
) -> None:
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "bundle"
    shutil.copytree(other, checkpoint)
    change(checkpoint)
    options = ["--checkpoint", str(checkpoint), "-o", str(out)]
    model = ["--model", "FastWan-QAD-1.3B"] if change is fewer_layers else []
    result = CliRunner().invoke(main, ["swap-weights", str(data_bundle), *options, *model])
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert (result.exit_code, len(errors)) == ((2, 1) if message else (0, 0))
    if message:
        assert message in errors[0]
        assert "build it with build-engine" in errors[0]
    assert out.exists() is not bool(message)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint"} | (
        set() if message else {"bundle"}
    )


@pytest.fixture
def lora(tiny_checkpoint: Path, tmp_path: Path) -> str:
    """A file that changes one linear of a step."""
    name = "blocks.1.ffn.net.2"
    outputs, inputs = open_checkpoint(tiny_checkpoint, components=("dit",)).transformer.shape(
        f"{name}.weight"
    )
    draw = torch.Generator().manual_seed(0)
    pair = {
        "A": torch.randn(4, inputs, generator=draw),
        "B": torch.randn(outputs, 4, generator=draw),
    }
    path = tmp_path / "style.safetensors"
    save_file({f"transformer.{name}.lora_{k}.weight": t for k, t in pair.items()}, path)
    return str(path)


def test_a_lora_of_a_steps_linears_builds_nothing(
    tiny_checkpoint: Path, tmp_path: Path, lora: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTWAN_CACHE_DIR", str(tmp_path / "cache"))
    source, parts = str(tiny_checkpoint), ("dit",)
    plain, styled, built = (tmp_path / name for name in ("plain", "styled", "built"))
    build_engine(BuildSpec(source, plain, fusion="all", components=parts), Quiet())
    manifest = swap_weights(SwapSpec(plain, source, styled, lora=(lora,)), Quiet())
    plans = {Path(engine.file).stem for engine in manifest.engines.values()}
    plans |= {Path(each.engine.file).stem for each in manifest.fallbacks.values()}
    assert set(manifest.build.cached) == plans
    (adapter,) = manifest.onnx.model.adapters
    assert (adapter.file, adapter.tensors) == ("style.safetensors", 1)
    before, after = files_of(plain), files_of(styled)
    assert {name for name in after if before[name] != after[name]} == {
        "onnx/dit.data",
        "onnx/export.json",
    }
    spec = BuildSpec(source, built, fusion="all", components=parts, lora=(lora,), use_cache=False)
    build_engine(spec, Quiet())
    assert files_of(built) == after


def test_a_damaged_plan_is_not_taken_over(copied: Path, other: Path, tmp_path: Path) -> None:
    manifest: Manifest = open_bundle(copied).manifest
    plan = copied / next(each.file for each in manifest.engines.values() if each.constants)
    content = bytearray(plan.read_bytes())
    content[100] ^= 1
    plan.write_bytes(content)
    with pytest.raises(VerificationFailed, match="differs from its hash"):
        swap_weights(SwapSpec(copied, str(other), tmp_path / "bundle"), Quiet())


def test_the_bundle_itself_is_not_replaced(copied: Path, other: Path) -> None:
    before = files_of(copied)
    with pytest.raises(BadInput):
        swap_weights(SwapSpec(copied, str(other), copied, use_cache=False), Quiet())
    assert files_of(copied) == before
