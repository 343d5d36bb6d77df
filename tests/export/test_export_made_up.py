"""A recipe and an attention that only this file knows: refused as names, built as objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto
from torch import Tensor

from fastwan import config
from fastwan.build import BuildSpec, build_engine
from fastwan.bundle import MANIFEST, Linear, Manifest, open_bundle
from fastwan.cli import main
from fastwan.engines.coverage import check_coverage, check_onnx_linears
from fastwan.engines.plan import plan_dit
from fastwan.errors import BadInput, VerificationFailed
from fastwan.export import attentions, recipes
from fastwan.export.attentions import EXACT, Attention, Division, Form, find_attention
from fastwan.export.dit_graph import build_dit_graph
from fastwan.export.dit_onnx import export_dit
from fastwan.export.models.wan import WanDiT
from fastwan.export.passes.graphs import clone
from fastwan.export.passes.lower_attention import lower_attention
from fastwan.export.recipes import BF16, NVFP4, Fault, Gate, Kernel, Recipe, find_recipe
from fastwan.export.recipes.graph_index import GraphIndex
from fastwan.export.text_encoder_onnx import export_text_encoder
from fastwan.export.weights import load_module, load_weights
from fastwan.progress import Quiet
from fastwan.quality.verify.run import run_checks
from fastwan.quality.verify.subject import Subject

TOY, MODEL, TARGET = "made-up", "FastWan-QAD-1.3B", "rtx5090"


# Names in the tables, and nothing else.


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows that config.py asks for: a name in each table, and in a model's and a target's."""
    monkeypatch.setitem(config.RECIPES, TOY, "a recipe that nothing implements")
    monkeypatch.setitem(config.ATTENTIONS, TOY, "an attention that nothing implements")
    target = config.TARGETS[TARGET]
    both = {"recipes": (*target.recipes, TOY), "attentions": (*target.attentions, TOY)}
    monkeypatch.setitem(config.TARGETS, TARGET, replace(target, **both))


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
        tokenizer_dir=folder,
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


def _manifest(recipe: str = "nvfp4", attention: str = "sage3", **changes: Any) -> Manifest:
    fields = {
        "tool_version": "0", "versions": {}, "target": TARGET, "backend": "tensorrt-rtx",
        "attention": attention, "sampler": "unipc", "components": ["dit"], "engines": {},
        "files": {}, "build": {"seconds": 0, "peak_rss_bytes": 0},
        "onnx": {
            "tool_version": "0", "graphs": {},
            "model": {
                "name": MODEL, "recipe": recipe, "dit": {}, "decoder": None, "text_encoder": None,
                "shape": {"height": 96, "width": 160, "num_frames": 9}, "default_sampler": "unipc",
            },
        },
    }  # fmt: skip
    return Manifest.model_validate(fields | changes)


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize("stage", RECIPE_STAGES)
def test_every_stage_refuses_a_recipe_that_is_only_a_name(
    tiny: Any, tmp_path: Path, stage: str
) -> None:
    with pytest.raises(BadInput, match=f"nothing implements the recipe '{TOY}'.*nvfp4, bf16"):
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
    # Where nothing is wrong with the tables, the height is what the command stops at.
    done = CliRunner().invoke(main, [*arguments, "--components", "dit", "--height", "17"])
    message = f"nothing implements the {row} '{TOY}'" if row else "height 17 is no multiple of 16"
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


# Whole objects, in the tables alone.


class HalfGate(Gate):
    label = "fp16"
    wanted = "an fp16 GEMM"
    fix = "let the MatMul read fp16"

    def weight_elements(self, graph: GraphIndex, node: str) -> int:
        activation, weight = graph.matmul(node)
        cast = graph.producers.get(activation)
        if cast is None or cast.op_type != "Cast" or cast.attribute[0].i != TensorProto.FLOAT16:
            raise Fault("its activation is not cast to fp16")
        return graph.initializer(graph.producers[weight].input[0], TensorProto.FLOAT16, "weight")

    def computes(self, kernel: Kernel) -> bool:
        return kernel.kind == "gemm" and [x.dtype for x in kernel.operands] == ["Half", "Half"]


GATE = HalfGate()


@dataclass(frozen=True)
class Half(Recipe):
    """Linears in fp16, in a bf16 model."""

    name: str = TOY

    @property
    def gate(self) -> Gate | None:
        return GATE

    def convert(self, weight: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        return {"weight": weight.half()}

    def reference(self, weight: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        return {"weight": torch.from_numpy(weight.float().numpy().astype("float16"))}

    def merge(self, parts: Sequence[Mapping[str, Tensor]]) -> tuple[dict[str, Tensor], Tensor]:
        return {"weight": torch.cat([part["weight"] for part in parts])}, torch.ones(len(parts))

    def buffers(self, inputs: int, outputs: int, dtype: torch.dtype) -> dict[str, Tensor]:
        return {"weight": torch.empty(outputs, inputs, dtype=torch.float16)}

    def multiply(
        self, x: Tensor, stored: Mapping[str, Tensor], *, quantize_activation: bool
    ) -> Tensor:
        if not quantize_activation:
            return torch.matmul(x.float(), stored["weight"].float().t()).to(x.dtype)
        return torch.matmul(x.half(), stored["weight"].t()).to(x.dtype)

    def expand(self, model: ir.Model) -> tuple[ir.Model, bool]:
        return model, False

    def lower(self, model: ir.Model, *, quantize_activations: bool) -> bool:
        return False


class Ungated(Half):
    """Stores fp16, and does not say how it would be seen."""

    @property
    def gate(self) -> None:
        return None


class Fallen(Half):
    """Multiplies in the model's dtype, as a builder that falls back."""

    def multiply(
        self, x: Tensor, stored: Mapping[str, Tensor], *, quantize_activation: bool
    ) -> Tensor:
        return torch.matmul(x, stored["weight"].to(x.dtype).t())


class Blind(HalfGate):
    """Sees the engine alone."""

    def weight_elements(self, graph: GraphIndex, node: str) -> int:
        return 0


class Unseen(Fallen):
    @property
    def gate(self) -> Gate:
        return BLIND


BLIND = Blind()
WIDE = Form("wide", EXACT.compute)


@dataclass(frozen=True)
class Wide(Attention):
    """Exact attention in fp32 inside the engine, one engine in all."""

    name: str = TOY
    uses_library = False
    reference = EXACT

    def divide(self, dit: ir.Model, *, plugins: bool) -> Division:
        return Division((lower_attention(clone(dit), WIDE)[0],))


@pytest.fixture
def registered(named: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[Recipe], None]:
    """Puts objects behind the names, and gives them to a model."""
    row = config.MODELS[MODEL]
    monkeypatch.setitem(config.MODELS, MODEL, replace(row, recipe=TOY, attention=TOY))
    monkeypatch.setitem(attentions.IMPLEMENTED, TOY, Wide())

    def register(recipe: Recipe) -> None:
        monkeypatch.setitem(recipes.IMPLEMENTED, TOY, recipe)

    return register


def _build(tiny: Any, folder: Path, *components: Any) -> Manifest:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
    spec = BuildSpec(
        str(tiny.folder), folder / "out", text_encoder_recipe=TOY, components=components,
        use_cache=False,
    )  # fmt: skip
    return build_engine(spec, Quiet())


@pytest.mark.trt
def test_whole_ones_build_a_bundle_that_passes(
    tiny: Any, tmp_path: Path, registered: Callable[[Recipe], None]
) -> None:
    registered(Half())
    manifest = _build(tiny, tmp_path, "dit")
    assert (manifest.onnx.model.recipe, manifest.attention) == (TOY, TOY)
    assert list(manifest.engines) == ["time_tables", "text_kv", "dit"]
    linears = [linear for engine in manifest.engines.values() for linear in engine.linears]
    assert len(linears) == 8 * tiny.config.num_layers
    assert {linear.format for linear in linears} == {TOY}
    bundle = open_bundle(tmp_path / "out")
    names = ("fp16_graph", "fp16_engines", "weights_bit_exact", "graph_fp32")
    report = run_checks(Subject(bundle), names)
    assert {check.name for check in report.checks} >= set(names)
    assert [check.name for check in report.checks if not check.passed] == []


FAULTS: dict[str, tuple[Recipe, str]] = {
    "no gate": (Ungated(), f"recipe '{TOY}' changes a weight and has no gate"),
    "lost in the graph": (Fallen(), "12 targeted linears not fp16 in the graph: .*SelfAttention.q"),
    "lost in the engine": (
        Unseen(), "12 targeted linears not computed by an fp16 GEMM: .*BFloat16 GEMM",
    ),
}  # fmt: skip


@pytest.mark.trt
@pytest.mark.parametrize("fault", ["", *FAULTS])
def test_a_whole_recipe_is_held_to_its_gate(
    tiny: Any, tmp_path: Path, registered: Callable[[Recipe], None], fault: str
) -> None:
    recipe, message = FAULTS[fault] if fault else (Half(), "")
    registered(recipe)
    if not fault:
        assert list(_build(tiny, tmp_path, "text_encoder").engines) == ["text_encoder"]
        return
    with pytest.raises(VerificationFailed, match=message) as refused:
        _build(tiny, tmp_path, "text_encoder")
    assert refused.value.exit_code == 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recipe", [BF16(), NVFP4(), Half()], ids=lambda recipe: recipe.name)
def test_the_module_of_any_recipe_loads_a_checkpoint(tiny: Any, recipe: Recipe) -> None:
    module = load_module(tiny.weights, tiny.config, tiny.shape, recipe)
    assert len(list(module.buffers())) > 50
