"""Scales of a product's rows go to the attention that takes them, and nowhere else."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import onnx
import onnx_ir as ir
import pytest

from fastwan.config import ACTIVATIONS, DiTConfig, VideoShape
from fastwan.engines.plan import DitPlan, plan_dit
from fastwan.engines.regions import region_records
from fastwan.errors import BadInput
from fastwan.export.attentions import find_attention
from fastwan.export.dit_graph import build_dit_graph, targeted_linears
from fastwan.export.passes.scale_rows import scale_rows
from fastwan.export.recipes import FP8, NVFP4, Recipe
from fastwan.manifest import Engine, RegionNode
from fastwan.plugins.regions import region_op
from fastwan.plugins.regions.base import tensor
from fastwan.plugins.regions.sage_attention2 import SageAttention2

ROWS, WIDTH = 128, 256


@cache
def graph(config: DiTConfig, shape: VideoShape, recipe: Recipe) -> ir.Model:
    """The exported transformer, which no plan changes."""
    return build_dit_graph(config, shape, recipe)


def planned(tiny: Any, recipe: Recipe, attention: str, *, plugins: bool = False) -> DitPlan:
    linears = targeted_linears(tiny.config, recipe)
    if recipe.activation_name == "static":
        recipe = recipe.with_activation("static", {each.name: 0.25 for each in linears})
    model = graph(tiny.config, tiny.shape, recipe)
    return plan_dit(model, linears, attention=find_attention(attention), plugins=plugins)


def attentions(plan: DitPlan) -> list[ir.Node]:
    return [node for region in plan.regions for node in region.model.graph]


def factors_left(plan: DitPlan) -> int:
    """Products of qkv GEMMs that an engine of a step multiplies."""
    nodes = [node for part in plan.parts for node in part.model.graph]
    return sum(node.name.endswith("attn1.qkv/scaled") for node in nodes if node.name)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_computed_scales_leave_the_engines(tiny: Any, activation: str) -> None:
    plan = planned(tiny, FP8().with_activation(activation, {}), "sage2")
    nodes, computed = attentions(plan), activation != "static"
    assert len(nodes) == tiny.config.num_layers
    assert factors_left(plan) == (0 if computed else len(nodes))
    for node in nodes:
        assert len(node.inputs) == (8 if computed else 7)
        assert ("row_scaled" in node.attributes) == computed


def test_a_region_reads_the_product_and_the_scales_of_its_rows(tiny: Any) -> None:
    plan = planned(tiny, FP8(), "sage2")
    made = {
        part.name: Engine.model_construct(outputs=tuple(map(_spec, part.model.graph.outputs)))
        for part in plan.parts
    }
    for index, region in enumerate(region_records(plan.regions, made).values()):
        (node,) = region.nodes
        name = f"blocks.{index}.attn1.qkv"
        assert (node.inputs[0], node.inputs[-1]) == (f"{name}/MatMul/out", f"{name}/factor/out")
        op = region_op(node, {spec.name: spec for spec in region.tensors})
        assert isinstance(op, SageAttention2)
        assert op.attributes.row_scaled


def _spec(value: ir.Value) -> Any:
    assert value.shape is not None
    assert value.dtype is not None
    return SimpleNamespace(name=value.name)


@pytest.mark.parametrize(
    ("recipe", "attention"),
    [(FP8(), "sage3"), (FP8(), "fp8"), (NVFP4(), "sage2")],
    ids=["sage3", "fp8", "nvfp4"],
)
def test_other_pairs_have_none(tiny: Any, recipe: Recipe, attention: str) -> None:
    plan = planned(tiny, recipe, attention)
    assert len(plan.parts) > 2
    assert all(len(node.inputs) == 7 for node in attentions(plan))
    assert factors_left(plan) == (tiny.config.num_layers if recipe == FP8() else 0)


GRAPHS = {
    "": ("[1, 128, 1]", "", True),
    "a factor of channels": ("[1, 1, 768]", "", False),
    "read by another": ("[1, 128, 1]", "other = Neg (qkv)", False),
}


def small(kit: SimpleNamespace, factor: str, other: str = "") -> ir.Model:
    """A product, its factor, and the attention that reads it."""
    out = f", bfloat16[1, {ROWS}, {3 * WIDTH}] other" if other else ""
    model: ir.Model = kit.graph(
        f"g (bfloat16[1, {ROWS}, 64] x, bfloat16[64, {3 * WIDTH}] w, float{factor} factor,"
        f"   float[3] s, bfloat16[{3 * WIDTH}] b, bfloat16[{WIDTH}] q, bfloat16[{WIDTH}] k,"
        f"   float[{ROWS}, 64] c, float[{ROWS}, 64] d)"
        f" => (bfloat16[1, {ROWS}, {WIDTH}] out{out})"
        f" <bfloat16[1, {ROWS}, {3 * WIDTH}] y, float[1, {ROWS}, {3 * WIDTH}] wide,"
        f"  float[1, {ROWS}, {3 * WIDTH}] scaled, bfloat16[1, {ROWS}, {3 * WIDTH}] qkv> {{"
        " y = MatMul (x, w) wide = Cast <to: int = 1> (y) scaled = Mul (wide, factor)"
        f" qkv = Cast <to: int = 16> (scaled) {other}"
        " out = fastwan.SageAttention3 <num_heads: int = 2, num_tokens: int = 100,"
        "  eps: float = 0.000001, softmax_scale: float = 0.1, exact_max: int = 0>"
        " (qkv, s, b, q, k, c, d) }"
    )
    return model


@pytest.mark.parametrize("fault", GRAPHS)
def test_only_rows_that_nothing_else_reads(kit: SimpleNamespace, fault: str) -> None:
    factor, other, found = GRAPHS[fault]
    model = small(kit, factor, other)
    assert scale_rows(model) is found
    assert not scale_rows(model)
    (node,) = (each for each in model.graph if each.op_type == "SageAttention3")
    names = [value.name for value in node.inputs if value is not None]
    assert names[0] == ("y" if found else "qkv")
    assert names[7:] == (["factor"] if found else [])
    kept = {each.op_type for each in model.graph}
    assert ("Cast" in kept, "Mul" in kept) == (not found, not found)


@pytest.mark.parametrize("fault", ["", "one more input"])
def test_an_engine_that_holds_the_node_is_held_to_its_schema(
    kit: SimpleNamespace, fault: str
) -> None:
    model = small(kit, f"[1, {ROWS}, 1]")
    assert scale_rows(model)
    (whole,) = find_attention("sage2").divide(model, plugins=True).models
    proto = ir.to_proto(whole)
    (node,) = (node for node in proto.graph.node if node.op_type == "SageAttention2")
    assert len(node.input) == 8
    if not fault:
        onnx.checker.check_model(proto)
        return
    node.input.append("d")
    with pytest.raises(onnx.checker.ValidationError, match="SageAttention2"):
        onnx.checker.check_model(proto)


@pytest.mark.parametrize("plugins", [False, True])
def test_both_kinds_of_backend_take_the_node(tiny: Any, plugins: bool) -> None:
    plan = planned(tiny, FP8(), "sage2", plugins=plugins)
    held = [node.op_type for part in plan.parts for node in part.model.graph]
    assert held.count("SageAttention2") == (tiny.config.num_layers if plugins else 0)


@pytest.mark.parametrize("shape", [(1, ROWS, 1), (1, ROWS, 2)])
def test_a_manifest_has_a_scale_for_each_row(shape: tuple[int, ...]) -> None:
    bf16, fp32 = "bfloat16", "float32"
    specs = (
        tensor("y", bf16, 1, ROWS, 3 * WIDTH), tensor("s", fp32, 3), tensor("b", bf16, 3 * WIDTH),
        tensor("q", bf16, WIDTH), tensor("k", bf16, WIDTH), tensor("c", fp32, ROWS, 64),
        tensor("d", fp32, ROWS, 64), tensor("r", fp32, *shape),
        tensor("out", bf16, 1, ROWS, WIDTH),
    )  # fmt: skip
    node = RegionNode(
        op="SageAttention2",
        inputs=tuple(spec.name for spec in specs[:-1]),
        outputs=("out",),
        attributes={"num_heads": 2, "num_tokens": 100, "per_warp": 0, "row_scaled": 1},
    )
    table = {spec.name: spec for spec in specs}
    if shape[2] == 1:
        assert region_op(node, table).inputs[-1].shape == shape
        return
    with pytest.raises(BadInput, match="row_scale"):
        region_op(node, table)
