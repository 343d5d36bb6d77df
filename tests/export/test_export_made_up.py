"""A recipe and an attention that only this file knows: they build, and are held to their gate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto
from torch import Tensor

from fastwan import config
from fastwan.build import BuildSpec, build_engine
from fastwan.bundle import open_bundle
from fastwan.engines.plan import plan_dit
from fastwan.errors import VerificationFailed
from fastwan.export import attentions, recipes
from fastwan.export.attentions import EXACT, Attention, Division, Form
from fastwan.export.dit_graph import targeted_linears
from fastwan.export.passes.graphs import clone
from fastwan.export.passes.lower_attention import lower_attention
from fastwan.export.recipes import BF16, NVFP4, Fault, Gate, Kernel, Recipe
from fastwan.export.recipes.graph_index import GraphIndex
from fastwan.export.weights import load_module
from fastwan.manifest import Manifest
from fastwan.progress import Quiet
from fastwan.quality.verify.run import run_checks
from fastwan.quality.verify.subject import Subject

TOY, MODEL = "made-up", "FastWan-QAD-1.3B"


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
        self,
        x: Tensor,
        stored: Mapping[str, Tensor],
        *,
        quantize_activation: bool,
        tokens: int | None = None,
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
        self,
        x: Tensor,
        stored: Mapping[str, Tensor],
        *,
        quantize_activation: bool,
        tokens: int | None = None,
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


class Renaming(Wide):
    """Gives the node of a linear another name."""

    def divide(self, dit: ir.Model, *, plugins: bool) -> Division:
        (model,) = super().divide(dit, plugins=plugins).models
        next(node for node in model.graph if node.name == "blocks.1.ffn.fc2/MatMul").name = "fc2"
        return Division((model,))


@pytest.mark.parametrize("attention", [Wide(), Renaming()])
def test_an_attention_keeps_every_linear(exported: Any, tiny: Any, attention: Attention) -> None:
    linears = targeted_linears(tiny.config, NVFP4())
    if type(attention) is Wide:
        plan = plan_dit(exported.model(), linears, attention=attention, plugins=False)
        assert len(plan.parts) == 3
        return
    with pytest.raises(VerificationFailed, match=r"1 targeted linears .*blocks\.1\.ffn\.fc2"):
        plan_dit(exported.model(), linears, attention=attention, plugins=False)


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
