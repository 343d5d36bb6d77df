"""A recipe and an attention that are names in the tables and nothing else: every stage refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from fastwan import config
from fastwan.build import BuildSpec, build_engine
from fastwan.bundle import open_bundle
from fastwan.cli import main
from fastwan.engines.coverage import check_coverage, check_onnx_linears
from fastwan.engines.plan import plan_dit
from fastwan.errors import BadInput
from fastwan.export.attentions import find_attention
from fastwan.export.dit_graph import build_dit_graph
from fastwan.export.dit_onnx import export_dit
from fastwan.export.models.wan import WanDiT
from fastwan.export.recipes import NVFP4, find_recipe
from fastwan.export.text_encoder_onnx import export_text_encoder
from fastwan.export.weights import load_weights
from fastwan.manifest import MANIFEST, Linear, Manifest
from fastwan.progress import Quiet
from fastwan.quality.verify.subject import Subject
from testkit.manifests import exported_of, manifest_of

TOY, MODEL, TARGET = "made-up", "FastWan-QAD-1.3B", "rtx5090"


def _linear() -> Linear:
    return Linear(name="a", node="a/MatMul", sources=("a",), format=TOY)


def _graph() -> onnx.ModelProto:
    return onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []))


RECIPE_STAGES: dict[str, Callable[[Any, Path], object]] = {
    "weights": lambda tiny, _: list(load_weights(tiny.weights, tiny.config, find_recipe(TOY))),
    "module": lambda tiny, _: WanDiT(tiny.config, tiny.shape, find_recipe(TOY)),
    "graph": lambda tiny, _: build_dit_graph(tiny.config, tiny.shape, find_recipe(TOY)),
    "text encoder": lambda tiny, folder: export_text_encoder(
        tiny.weights,
        None,
        folder,
        tokenizer={},
        recipe=find_recipe(TOY),  # type: ignore[arg-type]
    ),
    "gate of the graph": lambda tiny, _: check_onnx_linears(_graph(), [_linear()]),
    "gate of the engine": lambda tiny, _: check_coverage([], [_linear()]),
    "build-engine": lambda tiny, folder: build_engine(
        BuildSpec(str(tiny.folder), folder / "out", text_encoder_recipe=TOY), Quiet()
    ),
    "verify": lambda tiny, _: Subject(SimpleNamespace(manifest=_manifest(recipe=TOY))),  # type: ignore[arg-type]
}

ATTENTION_STAGES: dict[str, Callable[[Any, Path], object]] = {
    "CPU reference": lambda tiny, folder: export_dit(
        tiny.weights, tiny.config, tiny.shape, NVFP4(), folder, attention=find_attention(TOY)
    ),
    "plan": lambda tiny, _: plan_dit(
        ir.from_proto(_graph()), (), attention=find_attention(TOY), plugins=False
    ),
    "build-engine": lambda tiny, folder: build_engine(
        BuildSpec(str(tiny.folder), folder / "out", attention=TOY), Quiet()
    ),
}


def _manifest(recipe: str = "nvfp4", **changes: Any) -> Manifest:
    return manifest_of(onnx=exported_of(name=MODEL, recipe=recipe), target=TARGET, **changes)


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize("stage", RECIPE_STAGES)
def test_every_stage_refuses_a_recipe_that_is_only_a_name(
    tiny: Any, tmp_path: Path, stage: str
) -> None:
    with pytest.raises(BadInput, match=f"nothing implements the recipe '{TOY}'.*nvfp4, fp8, bf16"):
        RECIPE_STAGES[stage](tiny, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize("stage", ATTENTION_STAGES)
def test_every_stage_refuses_an_attention_that_is_only_a_name(
    tiny: Any, tmp_path: Path, stage: str
) -> None:
    message = f"nothing implements the attention '{TOY}'.*sage3, native"
    with pytest.raises(BadInput, match=message):
        ATTENTION_STAGES[stage](tiny, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize("row", ["", "recipe", "attention"])
def test_the_command_line_says_so(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str
) -> None:
    """As with a model's row for a format that nobody has written."""
    changes = {row: TOY} if row else {}
    monkeypatch.setitem(config.MODELS, MODEL, replace(config.MODELS[MODEL], **changes))
    arguments = ["build-engine", "--checkpoint", str(tiny.folder), "-o", str(tmp_path / "out")]
    # Where nothing is wrong with the tables, the sampler is what the command stops at.
    done = CliRunner().invoke(main, [*arguments, "--components", "dit", "--sampler", "unipc-50"])
    message = f"nothing implements the {row} '{TOY}'" if row else "unknown sampler 'unipc-50'"
    assert done.exit_code == 2
    assert message in done.stderr
    assert "unexpected" not in done.stderr


@pytest.mark.parametrize("recipe", ["bf16", "nvfp4"])
def test_the_text_encoder_needs_the_targets_gemm_too(
    tiny: Any, tmp_path: Path, recipe: str
) -> None:
    spec = BuildSpec(
        str(tiny.folder), tmp_path / "out", target="rtx4090", attention="native", height=17,
        components=("text_encoder",), text_encoder_recipe=recipe,
    )  # fmt: skip
    lacks = "GeForce RTX 4090 has no nvfp4 GEMM, which its text encoder needs"
    with pytest.raises(BadInput, match="height 17" if recipe == "bf16" else lacks):
        build_engine(spec, Quiet())


@pytest.mark.parametrize("field", ["", "recipe", "attention", "backend", "target"])
def test_opening_a_manifest_refuses_an_unknown_name(tmp_path: Path, field: str) -> None:
    text = _manifest().model_dump_json()
    names = {
        "recipe": "nvfp4", "attention": "sage3", "backend": "tensorrt-rtx", "target": TARGET,
    }  # fmt: skip
    if field:
        text = text.replace(f'"{field}":"{names[field]}"', f'"{field}":"{TOY}"')
    (tmp_path / MANIFEST).write_text(text)
    if not field:
        assert open_bundle(tmp_path).manifest == _manifest()
        return
    with pytest.raises(BadInput, match=rf"manifest.json: unknown {field} '{TOY}'.*{names[field]}"):
        open_bundle(tmp_path)
