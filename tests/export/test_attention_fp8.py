"""Attention ``fp8``: what it computes, in torch and on ONNX Runtime."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from fastwan.export.attentions import EXACT
from fastwan.export.attentions.fp8 import FP8, head_scale
from fastwan.export.attentions.sage3 import FP4
from fastwan.export.passes.lower_for_onnxruntime import lower_for_onnxruntime

LENGTH, TOKENS, HEADS = 256, 180, 2
WIDTH = 128 * HEADS
SETTINGS: dict[str, Any] = {
    "num_heads": HEADS, "num_tokens": TOKENS, "eps": 1e-6, "softmax_scale": 128**-0.5
}  # fmt: skip
NAMES = ("qkv", "qkv_scale", "qkv_bias", "q_norm", "k_norm", "rope_cos", "rope_sin")


def inputs(offset: float = 0.0) -> dict[str, Tensor]:
    """Inputs of the node; rows past the last token are 1000 times as large.

    Args:
        offset: of the keys, a channel.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    qkv = normal(1, LENGTH, 3 * WIDTH)
    qkv[..., WIDTH : 2 * WIDTH] += offset * normal(WIDTH)
    qkv[:, TOKENS:] *= 1000
    angle = 6.28 * torch.rand(LENGTH, 64, generator=generator)
    tensors = (
        qkv.bfloat16(), torch.tensor([0.5, 2.0, 0.25]), (0.1 * normal(3 * WIDTH)).bfloat16(),
        (1 + 0.2 * normal(WIDTH)).bfloat16(), (1 + 0.2 * normal(WIDTH)).bfloat16(),
        angle.cos(), angle.sin(),
    )  # fmt: skip
    return dict(zip(NAMES, tensors, strict=True))


def relative(value: Tensor, expected: Tensor) -> float:
    return float((value.float() - expected.float()).norm() / expected.float().norm())


def test_its_error_lies_between_bf16_and_fp4() -> None:
    tensors = inputs()
    exact = EXACT.compute(*tensors.values(), **SETTINGS)
    made, fp4 = (form.compute(*tensors.values(), **SETTINGS) for form in (FP8, FP4))
    assert 0.01 < relative(made, exact) < 0.5 * relative(fp4, exact)


def test_padded_rows_change_nothing() -> None:
    tensors = inputs()
    kept = FP8.compute(*tensors.values(), **SETTINGS)
    assert not kept[:, TOKENS:].any()
    small, moved = dict(tensors), dict(tensors)
    small["qkv"], moved["qkv"] = tensors["qkv"].clone(), tensors["qkv"].clone()
    small["qkv"][:, TOKENS:] = 0
    assert torch.equal(kept, FP8.compute(*small.values(), **SETTINGS))
    moved["qkv"][:, TOKENS - 1] *= 1000
    assert not torch.equal(kept, FP8.compute(*moved.values(), **SETTINGS))


def test_an_offset_of_all_keys_costs_no_accuracy() -> None:
    """Without RoPE an offset a channel is the keys' mean, which is taken off."""
    errors = []
    for offset in (0.0, 3.0):
        tensors = inputs(offset)
        tensors["rope_cos"], tensors["rope_sin"] = torch.ones(LENGTH, 64), torch.zeros(LENGTH, 64)
        exact = EXACT.compute(*tensors.values(), **SETTINGS)
        errors.append(relative(FP8.compute(*tensors.values(), **SETTINGS), exact))
    assert errors[1] < 1.1 * errors[0]


@pytest.mark.parametrize("factor", [1.0, 128**-0.5, 2.0])
def test_no_value_saturates_under_the_scale_of_a_head(factor: float) -> None:
    norm = inputs()["q_norm"]
    scale = head_scale(norm, HEADS, factor)
    assert scale.shape == (1, HEADS, 1, 1)
    assert torch.equal(scale, torch.exp2(torch.log2(scale).round()))
    # The largest that a norm and a rotation make: all of a row in one pair.
    largest = (2 * WIDTH) ** 0.5 * norm.float().abs().reshape(HEADS, -1).amax(1) * factor
    assert bool((largest / scale.reshape(-1) <= 448).all())
    assert bool((largest / scale.reshape(-1) > 100).all())


def test_onnxruntime_computes_what_torch_does(kit: SimpleNamespace) -> None:
    bf16, fp32 = ir.DataType.BFLOAT16, ir.DataType.FLOAT
    tensors = inputs()
    values = [
        ir.Value(
            name=name,
            type=ir.TensorType(bf16 if tensor.dtype == torch.bfloat16 else fp32),
            shape=ir.Shape(tensor.shape),
        )
        for name, tensor in tensors.items()
    ]
    node = ir.node(
        "SageAttention3", values, SETTINGS | {"exact_max": 0}, domain="fastwan", name="attn"
    )
    out = node.outputs[0]
    out.name, out.type = "out", ir.TensorType(bf16)
    out.shape = ir.Shape([1, LENGTH, WIDTH])
    opsets = {"": 23, "fastwan": 1}
    model = ir.Model(ir.Graph(values, [out], nodes=[node], opset_imports=opsets), ir_version=11)
    lower_for_onnxruntime(model, attention=FP8)
    got = kit.run(model, {name: tensor.float() for name, tensor in tensors.items()})["out"]
    # Sums of another order cross a tie of e4m3 here and there.
    assert relative(got, FP8.compute(*tensors.values(), **SETTINGS)) < 0.02
