"""Recipe ``fp8``: the published codes, and activations under each kind of scale."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastwan.config import ACTIVATIONS
from fastwan.errors import BadInput
from fastwan.export import fp8
from fastwan.export.dit_graph import build_dit_graph
from fastwan.export.passes.graphs import submodel, with_constants
from fastwan.export.passes.lower_for_onnxruntime import lower_for_onnxruntime
from fastwan.export.passes.lower_fp8 import linears
from fastwan.export.recipes import FP8, find_recipe
from fastwan.export.recipes.fp8_operator import activation_scale, fp8_linear

K, N, LENGTH, TOKENS = 64, 48, 16, 11


def every_bf16(limit: float) -> Tensor:
    """A weight of every bf16 number up to `limit`, minus zero among them, [256, N]."""
    values = torch.arange(1 << 16).to(torch.uint16).view(torch.bfloat16)
    kept = values[values.float().abs() <= limit]
    return torch.cat([kept, kept.new_zeros(-kept.numel() % 256)]).reshape(256, -1)


def as_bytes(codes: Tensor) -> Tensor:
    return codes.view(torch.uint8)


@pytest.mark.parametrize("limit", [3.0, 0.0078125, 300.0])
def test_codes_are_two_roundings_by_torchs_own_casts(limit: float) -> None:
    weight = every_bf16(limit)
    assert weight.numel() > 30_000
    scale = torch.tensor(limit) / 448
    quotient = (weight.float() / scale.bfloat16().float()).bfloat16()
    wanted = quotient.to(torch.float8_e4m3fn)
    made = FP8().reference(weight, torch.bfloat16)
    assert torch.equal(as_bytes(made["weight"]), as_bytes(wanted))
    assert made["weight_scale"].dtype == torch.float32
    assert made["weight_scale"] == scale


def test_one_rounding_of_the_fp32_quotient_gives_other_codes() -> None:
    weight = every_bf16(3.0)
    scale = weight.float().abs().max() / 448
    once = (weight.float() / scale).to(torch.float8_e4m3fn)
    assert not torch.equal(
        as_bytes(once), as_bytes(FP8().reference(weight, weight.dtype)["weight"])
    )


@pytest.mark.parametrize("limit", [3.0, 300.0, 1e-6, 0.0])
def test_modelopt_gives_these_bytes(limit: float) -> None:
    pytest.importorskip("modelopt")
    weight = every_bf16(limit)
    made, wanted = (each(weight, weight.dtype) for each in (FP8().convert, FP8().reference))
    assert torch.equal(as_bytes(made["weight"]), as_bytes(wanted["weight"]))
    assert made["weight_scale"].dtype == torch.float32
    assert made["weight_scale"] == wanted["weight_scale"]


def test_a_weight_of_zeros_has_the_smallest_scale() -> None:
    codes, scale = fp8.quantize_weight(torch.zeros(4, 16, dtype=torch.bfloat16))
    assert not as_bytes(codes).any()
    assert scale == torch.tensor(1 / (448 * 512))


def test_merged_linears_keep_their_codes_and_hand_on_three_scales() -> None:
    recipe, generator = FP8(), torch.Generator().manual_seed(0)
    parts = [
        recipe.reference(torch.randn(8, K, generator=generator).bfloat16() * size, torch.bfloat16)
        for size in (1, 3, 0.2)
    ]
    merged, factors = recipe.merge(parts)
    assert torch.equal(
        as_bytes(merged["weight"]), torch.cat([as_bytes(p["weight"]) for p in parts])
    )
    assert merged["weight_scale"] == 1
    assert torch.equal(factors, torch.stack([part["weight_scale"] for part in parts]))
    assert len(factors.unique()) == 3


def activation(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(1, LENGTH, K, generator=generator)
    return (rows * torch.exp2(torch.arange(LENGTH) % 7)[:, None]).bfloat16()


def test_padded_rows_never_enter_a_maximum() -> None:
    x = activation()
    padded = x.clone()
    padded[:, TOKENS:] = 10_000
    kept, moved = (activation_scale(v, None, "per_tensor", TOKENS) for v in (x, padded))
    assert kept.shape == (1, 1, 1)
    assert kept == moved == fp8.scale_of(x[:, :TOKENS].abs().max())
    # The twin: without padding the same rows count.
    assert activation_scale(padded, None, "per_tensor", 0) == fp8.scale_of(padded.abs().max())
    rows = activation_scale(padded, None, "per_token", TOKENS)[:, :TOKENS]
    assert torch.equal(rows, fp8.scale_of(x.abs().amax(-1, keepdim=True))[:, :TOKENS])


def test_a_scale_of_its_own_a_token_is_the_most_exact() -> None:
    x, weight = activation(), torch.randn(N, K).bfloat16()
    codes, scale = fp8.quantize_weight(weight)
    exact = x.float() @ (codes.float() * scale).t()
    errors = []
    for name in ("per_token", "per_tensor"):
        y = fp8_linear(x, codes, scale, None, name, TOKENS, True)
        errors.append(float((y - exact)[0, 0].norm() / exact[0, 0].norm()))
    assert errors[0] < errors[1]
    assert errors[0] < 0.06


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("quantised", [True, False])
def test_onnxruntime_computes_what_the_module_does(
    tiny: Any, kit: SimpleNamespace, name: str, quantised: bool
) -> None:
    """One linear of the exported graph, with its quantiser, on ONNX Runtime."""
    names = [f"blocks.{i}.{part}" for i in range(2) for part in PARTS]
    names += [f"text_kv.{i}.{part}" for i in range(2) for part in ("to_k", "to_v")]
    recipe = FP8().with_activation(name, dict.fromkeys(names, 0.0173))
    model = build_dit_graph(tiny.config, tiny.shape, recipe)
    linear = next(x for x in linears(model) if x.matmul.name == "blocks.0.attn2.to_q/MatMul")
    end = linear.factor.graph.node("blocks.0.attn2.to_q/rounded")
    wanted, queue = {end}, [end]
    while queue:
        for value in queue.pop().inputs:
            node = None if value is None or value is linear.source else value.producer()
            if node is not None and node not in wanted:
                wanted.add(node)
                queue.append(node)
    nodes = with_constants(wanted, model.graph)
    cut = submodel(model, "linear", nodes, [end.outputs[0]])
    (given,) = cut.graph.inputs
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(256, 256, generator=generator).bfloat16()
    stored = recipe.reference(weight, torch.bfloat16) | recipe.of_input("blocks.0.attn2.to_q")
    for key, tensor in stored.items():
        value = cut.graph.initializers[f"blocks.0.attn2.to_q.{key}"]
        value.const_value = kit.tensor(tensor)
    lower_for_onnxruntime(cut, quantize_activations=quantised)
    x = torch.randn(1, 256, 256, generator=generator).bfloat16()
    x[:, 180:] *= 100
    want = recipe.multiply(x, stored, quantize_activation=quantised, tokens=180)
    (got,) = kit.run(cut, {given.name: x.float()}).values()
    # Sums of another order, rounded to bf16 twice.
    assert kit.relative(got, want.float()) < 4e-3
    assert not [node for node in cut.graph if "Quantize" in node.op_type]


PARTS = ("attn1.qkv", "attn1.to_out", "attn2.to_q", "attn2.to_out", "ffn.fc1", "ffn.fc2")


def test_a_static_scale_is_one_of_the_linear() -> None:
    recipe = FP8().with_activation("static", {"blocks.0.ffn.fc1": 0.25})
    assert recipe.of_input("blocks.0.ffn.fc1")["input_scale"] == 0.25
    with pytest.raises(BadInput, match="no calibrated scale") as refused:
        recipe.of_input("blocks.0.ffn.fc2")
    assert refused.value.where == "blocks.0.ffn.fc2"
    assert FP8().of_input("blocks.0.ffn.fc2") == {}


@pytest.mark.parametrize("name", ["nvfp4", "bf16"])
def test_only_fp8_leaves_a_choice_of_the_activation_scale(name: str) -> None:
    assert find_recipe("fp8", "per_tensor").activation_name == "per_tensor"
    with pytest.raises(BadInput, match=f"recipe {name} leaves no choice"):
        find_recipe(name, "per_tensor")


def test_an_unknown_activation_scale_is_refused() -> None:
    with pytest.raises(BadInput, match="unknown activation scale 'per_row'"):
        find_recipe("fp8", "per_row")
