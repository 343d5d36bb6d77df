"""The prologue of the reference against the modules that it stands for, and the whole node."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional

from fastwan.errors import BadInput
from fastwan.plugins import attention_reference, prologue_reference, reference

MakeNode = Callable[..., Any]


def node_arguments(node: Any) -> dict[str, Any]:
    region = node.region
    return {
        "num_heads": region.attributes.num_heads,
        "num_tokens": region.attributes.num_tokens,
        "eps": region.attributes.eps,
    }


def module_prologue(node: Any) -> list[torch.Tensor]:
    """Linear bias, RMS norm and rotary embedding as bf16 modules compute them, [B, T, H, D]."""
    qkv, scale, bias, q_norm, k_norm, cos, sin = node.tensors
    region = node.region
    rows = []
    for index, weight in enumerate((q_norm, k_norm, None)):
        x = qkv.chunk(3, -1)[index][:, : region.attributes.num_tokens]
        x = (x * scale[index]).to(torch.bfloat16) + bias.chunk(3)[index]
        if weight is None:
            rows.append(x.unflatten(-1, (region.attributes.num_heads, 128)))
            continue
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + region.attributes.eps)
        x = (wide.bfloat16() * weight).unflatten(-1, (region.attributes.num_heads, 128))
        even, odd = x[..., ::2], x[..., 1::2]
        c, s = (table[: region.attributes.num_tokens, None] for table in (cos, sin))
        first = (even.float() * c - odd.float() * s).bfloat16()
        second = (odd.float() * c + even.float() * s).bfloat16()
        rows.append(torch.stack((first, second), -1).flatten(-2))
    return rows


def test_prologue_is_that_of_the_bf16_modules(make_node: MakeNode) -> None:
    node = make_node(2, 150, 12, 160)
    rows = prologue_reference.prologue(*node.tensors, **node_arguments(node))
    for found, expected in zip(rows, module_prologue(node), strict=True):
        assert found.dtype == torch.bfloat16
        assert found.shape == (2, 160, 12, 128)
        assert not found[:, 150:].any()
        found = found[:, :150]
        # Only the order of the norm's sum is ours; it moves a value over a rounding tie at times.
        changed = (found != expected).float().mean().item()
        assert changed < 2e-3
        difference = (found.float() - expected.float()).norm() / expected.float().norm()
        assert difference < 2e-4
    assert torch.equal(rows[2][:, :150], module_prologue(node)[2])


def test_the_norm_is_exact_to_the_last_bit_of_a_wide_sum(make_node: MakeNode) -> None:
    x = torch.randn(50, 1536, generator=torch.Generator().manual_seed(5)).bfloat16().float()
    weight = torch.ones(1536)
    found = prologue_reference.rms_norm(x, weight, 1e-6, lambda value: value)
    wide = x.double()
    expected = wide * (wide.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()
    assert ((found.double() - expected).abs() <= expected.abs() * 3e-7).all()


def test_rotary_embedding_turns_neighbouring_channels() -> None:
    x = torch.randn(1, 3, 2, 128, generator=torch.Generator().manual_seed(6))
    angle = torch.rand(3, 64, generator=torch.Generator().manual_seed(7))
    found = prologue_reference.rope(x, angle.cos(), angle.sin(), lambda value: value)
    turned = torch.view_as_complex(x.unflatten(-1, (64, 2))) * torch.polar(
        torch.ones(3, 64), angle
    ).unsqueeze(1)
    torch.testing.assert_close(found, torch.view_as_real(turned).flatten(-2))


def test_rows_behind_the_tokens_reach_no_row(make_node: MakeNode) -> None:
    padded = make_node(2, 130, 2, 200)
    assert padded.tensors[0][:, 130:].isnan().all()
    tensors = (
        padded.tensors[0][:, :130],
        *padded.tensors[1:5],
        *(x[:130] for x in padded.tensors[5:]),
    )
    options = node_arguments(padded) | {"softmax_scale": padded.region.attributes.softmax_scale}
    for node in (reference.attention_node, reference.attention_node_fp32):
        wide = node(*padded.tensors, **options)
        tight = node(*tensors, **options)
        assert wide.shape == (2, 200, 256)
        assert torch.equal(wide[:, :130], tight)
        assert not wide[:, 130:].any()


def test_the_fp32_node_is_plain_attention(make_node: MakeNode) -> None:
    node = make_node(1, 70, 2)
    qkv, scale, bias, q_norm, k_norm, cos, sin = (x.double() for x in node.tensors)
    rows = []
    for index, weight in enumerate((q_norm, k_norm, None)):
        x = qkv.chunk(3, -1)[index] * scale[index] + bias.chunk(3)[index]
        if weight is not None:
            x = x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * weight
        x = x.unflatten(-1, (2, 128))
        if weight is not None:
            pairs = torch.view_as_complex(x.unflatten(-1, (64, 2)))
            turn = torch.complex(cos, sin).unsqueeze(1)
            x = torch.view_as_real(pairs * turn).flatten(-2)
        rows.append(x.transpose(1, 2))
    logits = rows[0] @ rows[1].transpose(-1, -2) / math.sqrt(128)
    expected = (logits.softmax(-1) @ rows[2]).transpose(1, 2).flatten(2)
    found = reference.attention_node_fp32(
        *node.tensors, **node_arguments(node), softmax_scale=node.region.attributes.softmax_scale
    )
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_the_node_is_prologue_then_attention(make_node: MakeNode) -> None:
    node = make_node(2, 140, 3)
    rows = prologue_reference.prologue(*node.tensors, **node_arguments(node))
    expected = attention_reference.sage_attention(
        *rows, node.region.attributes.softmax_scale, exact_max=True
    )
    found = reference.attention_node(
        *node.tensors,
        **node_arguments(node),
        softmax_scale=node.region.attributes.softmax_scale,
        exact_max=True,
    )
    assert torch.equal(found, expected.flatten(2))
    exact = functional.scaled_dot_product_attention(*(x.float().transpose(1, 2) for x in rows))
    error = (found.float() - exact.transpose(1, 2).flatten(2)).norm() / exact.norm()
    assert error < 0.35


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, r"qkv has shape .* not \[B, L, 1152\]"),
        ({"num_tokens": 0}, "num_tokens 0"),
        ({"num_tokens": 41}, "num_tokens 41 is not within 1 .. 40"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(
    make_node: MakeNode, change: dict[str, int], message: str
) -> None:
    node = make_node(1, 40, 2)
    prologue_reference.prologue(*node.tensors, **node_arguments(node))
    attributes = dataclasses.replace(node.region.attributes, **change)
    wrong = dataclasses.replace(
        node, region=dataclasses.replace(node.region, attributes=attributes)
    )
    with pytest.raises(BadInput, match=message):
        prologue_reference.prologue(*wrong.tensors, **node_arguments(wrong))


def test_a_short_rope_table_is_refused(make_node: MakeNode) -> None:
    node = make_node(1, 40, 2)
    tensors = list(node.tensors)
    tensors[5] = tensors[5][:39]
    with pytest.raises(BadInput, match="rope_cos"):
        prologue_reference.prologue(*tensors, **node_arguments(node))
