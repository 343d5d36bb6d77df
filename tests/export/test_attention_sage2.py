"""Attention ``sage2``: what becomes of the graph's node, and what the CPU reference computes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch

from fastwan.config import MODELS, TARGETS
from fastwan.export.attentions import find_attention
from fastwan.export.attentions.sage2 import INT8
from fastwan.export.passes.graphs import clone
from fastwan.export.passes.lower_attention import lower_attention
from fastwan.export.passes.lower_precision import lower_precision
from fastwan.plugins import reference, sage2_reference
from fastwan.plugins.regions.attention import SageTensors
from fastwan.plugins.regions.sage_attention2 import Sage2Attributes, SageAttention2
from fastwan.quality.selftest.regions import node_inputs

TOKENS, LENGTH, HEADS = 180, 256, 2
WIDTH = 128 * HEADS


@pytest.fixture(scope="module")
def model(kit: SimpleNamespace) -> ir.Model:
    """One attention node as it is exported, between a node before it and one behind it."""
    found: ir.Model = kit.graph(
        f"g (bfloat16[1, {LENGTH}, {3 * WIDTH}] qkv, float[3] qkv_scale,"
        f"   bfloat16[{3 * WIDTH}] qkv_bias, bfloat16[{WIDTH}] q_norm, bfloat16[{WIDTH}] k_norm,"
        f"   float[{LENGTH}, 64] rope_cos, float[{LENGTH}, 64] rope_sin)"
        f" => (bfloat16[1, {LENGTH}, {WIDTH}] out) {{ out = fastwan.SageAttention3"
        f" <num_heads: int = {HEADS}, num_tokens: int = {TOKENS}, eps: float = 0.000001,"
        f"  softmax_scale: float = {128**-0.5}, exact_max: int = 0>"
        " (qkv, qkv_scale, qkv_bias, q_norm, k_norm, rope_cos, rope_sin) }"
    )
    return found


@pytest.mark.parametrize("plugins", [False, True])
def test_the_node_becomes_a_region_or_stays_in_the_engine(model: ir.Model, plugins: bool) -> None:
    division = find_attention("sage2").divide(model, plugins=plugins)
    assert [node.op_type for node in model.graph] == ["SageAttention3"]
    assert len(division.regions) == (0 if plugins else 1)
    holder = division.models[0] if plugins else division.regions[0].model
    (node,) = holder.graph
    assert (node.domain, node.op_type) == ("fastwan", "SageAttention2")
    assert set(node.attributes) == {"num_heads", "num_tokens", "eps", "softmax_scale", "per_warp"}
    assert node.attributes["per_warp"].as_int() == 0


@pytest.mark.parametrize("flag", ["per_warp", "exact_max"])
def test_the_node_of_an_engine_is_held_to_its_schema(model: ir.Model, flag: str) -> None:
    (whole,) = find_attention("sage2").divide(model, plugins=True).models
    proto = ir.to_proto(whole)
    (node,) = proto.graph.node
    (attribute,) = (each for each in node.attribute if each.name == "per_warp")
    attribute.name = flag
    if flag == "per_warp":
        onnx.checker.check_model(proto)
        return
    with pytest.raises(onnx.checker.ValidationError, match="exact_max"):
        onnx.checker.check_model(proto)


def test_its_form_is_the_reference_of_the_kernel(kit: SimpleNamespace, model: ir.Model) -> None:
    region = SageAttention2(1, LENGTH, Sage2Attributes(HEADS, TOKENS, per_warp=False))
    tensors = SageTensors(*node_inputs(region))
    tensors.qkv[:, TOKENS:] = 0
    lowered = clone(model)
    assert lower_attention(lowered, INT8) == (lowered, True)
    session = kit.session(lower_precision(lowered)[0])
    out: torch.Tensor = session({k: v.float() for k, v in tensors._asdict().items()})["out"]
    (expected,) = region.reference(*tensors)
    # ONNX Runtime's sums and powers turn a tie of int8 or e4m3 now and then.
    assert kit.relative(out, expected) < 5e-3
    wide: Any = {name: value.float() for name, value in tensors._asdict().items()}
    exact = reference.attention_node_fp32(
        **wide, num_heads=HEADS, num_tokens=TOKENS, eps=1e-6, softmax_scale=128**-0.5
    )
    assert 2e-3 < kit.relative(out, exact) < 6e-2
    assert torch.all(out[:, TOKENS:] == 0)


def test_the_definition_sums_32_keys_before_it_rounds() -> None:
    region = SageAttention2(1, LENGTH, Sage2Attributes(HEADS, TOKENS, per_warp=False))
    tensors = node_inputs(region)
    (expected,) = region.reference(*tensors)
    other = sage2_reference.attention_node(
        *tensors, num_heads=HEADS, num_tokens=TOKENS, eps=1e-6, softmax_scale=128**-0.5,
        granularity=sage2_reference.Granularity.THREAD, sum_keys=16,
    )  # fmt: skip
    apart = float((other.float() - expected.float()).norm() / expected.float().norm())
    assert 0 < apart < region.limit


def test_every_gpu_from_8_9_on_runs_it() -> None:
    for target in TARGETS.values():
        assert ("sage2" in target.attentions) == (target.compute_capability >= 89), target.name
    assert MODELS["FastWan-QAD-1.3B-SA2"].attention == "sage2"
