"""Device code of SageAttention2++, run on the host, against the torch reference."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fastwan.plugins import sage2_reference
from fastwan.plugins.regions.sage_attention2 import Sage2Attributes, Sage2Layout, SageAttention2
from fastwan.plugins.sage2_halves import differing_bytes, stored_operands
from fastwan.plugins.sage2_reference import Granularity, Sage2Operands

GRANULARITIES = list(Granularity)


class Emulated(NamedTuple):
    """What the device code wrote: into its workspace, and into its output."""

    layout: Sage2Layout
    workspace: Tensor
    out: Tensor


def addresses(tensors: tuple[Tensor, ...]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*(x.data_ptr() for x in tensors))


def region_of(node: Any, granularity: Granularity, row_scaled: bool = False) -> SageAttention2:
    """The region of a node that was made for the FP4 attention: it has the same inputs."""
    old, per_warp = node.region.attributes, granularity is Granularity.WARP
    attributes = Sage2Attributes(old.num_heads, old.num_tokens, per_warp, row_scaled=row_scaled)
    return SageAttention2(node.region.batch, node.region.length, attributes)


def scales_of_rows(node: Any) -> Tensor:
    """[B, L, 1] fp32 as of activations of different magnitudes; NaN behind the last token."""
    batch, length, tokens = node.region.batch, node.region.length, node.region.attributes.num_tokens
    generator = torch.Generator().manual_seed(1)
    scales = torch.exp2(torch.rand(batch, length, 1, generator=generator) * 8 - 6)
    scales[:, tokens:] = float("nan")
    return scales


def emulate(
    emulation: ctypes.CDLL, region: SageAttention2, tensors: tuple[Tensor, ...], attention: bool
) -> Emulated:
    desc, layout = region.desc(), Sage2Layout()
    emulation.fastwan_emulate_sage2_layout(ctypes.byref(desc), ctypes.byref(layout))
    workspace = torch.full((layout.total + 128,), 0xA5, dtype=torch.uint8)
    workspace = workspace[-workspace.data_ptr() % 128 :][: layout.total]
    shape = (region.batch, region.length, region.channels)
    out = torch.full(shape, 7.0).bfloat16()
    here = ctypes.c_void_p(workspace.data_ptr())
    outputs = addresses((out,))
    emulation.fastwan_emulate_sage2_prologue(ctypes.byref(desc), addresses(tensors), outputs, here)
    if attention:
        emulation.fastwan_emulate_sage2_attention(ctypes.byref(desc), outputs, here)
    return Emulated(layout, workspace, out)


def true_rows(node: Any, *row_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v [B, num_tokens, H, 128] bf16."""
    attributes = node.region.attributes
    return sage2_reference.true_rows(
        *node.tensors,
        *row_scale,
        num_heads=attributes.num_heads,
        num_tokens=attributes.num_tokens,
        eps=attributes.eps,
    )


def check_operands(
    emulation: ctypes.CDLL,
    node: Any,
    granularity: Granularity,
    wide: bool,
    row_scale: tuple[Tensor, ...] = (),
) -> Sage2Operands:
    region = region_of(node, granularity, row_scaled=bool(row_scale))
    found = emulate(emulation, region, (*node.tensors, *row_scale), attention=False)
    wanted = sage2_reference.quantise(*true_rows(node, *row_scale), granularity)
    stored = stored_operands(found.workspace, found.layout, wanted, wide=wide)
    assert not any(differing_bytes(stored, wanted).values()), differing_bytes(stored, wanted)
    tokens = region.attributes.num_tokens
    assert (found.out[:, :tokens] == 7.0).all()  # the attention's to write
    assert (found.out[:, tokens:] == 0.0).all()
    assert found.layout.total == region.workspace_bytes
    return stored


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "length"),
    [
        (1, 1, 2, 1), (2, 31, 3, 33), (1, 64, 2, 64), (2, 127, 2, 127), (1, 128, 12, 130),
        (1, 129, 13, 300), (1, 600, 2, 608),
    ],
)  # fmt: skip
def test_prologue_writes_the_bytes_of_the_reference(
    sage2_emulation: ctypes.CDLL,
    make_node: Callable[..., Any],
    batch: int,
    tokens: int,
    heads: int,
    length: int,
    granularity: Granularity,
) -> None:
    node = make_node(batch, tokens, heads, length)
    check_operands(sage2_emulation, node, granularity, wide=False)


def test_prologue_of_compute_capability_9_0_writes_the_same_values_in_fp16(
    sage2_wide_emulation: ctypes.CDLL, make_node: Callable[..., Any]
) -> None:
    node = make_node(2, 129, 3, 140)
    check_operands(sage2_wide_emulation, node, Granularity.THREAD, wide=True)


@pytest.mark.parametrize("wide", [False, True], ids=["e4m3", "fp16"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("shape", [(1, 1, 2, 1), (2, 31, 3, 33), (1, 129, 13, 300)])
def test_scales_of_rows_come_before_anything_else(
    sage2_emulation: ctypes.CDLL,
    sage2_wide_emulation: ctypes.CDLL,
    make_node: Callable[..., Any],
    shape: tuple[int, int, int, int],
    granularity: Granularity,
    wide: bool,
) -> None:
    node = make_node(*shape)
    emulation = sage2_wide_emulation if wide else sage2_emulation
    scales = scales_of_rows(node)
    found = check_operands(emulation, node, granularity, wide, (scales,))
    # The builder's own kernel would have written this product for a node without them.
    qkv = node.tensors[0]
    qkv.copy_((qkv.float() * scales).bfloat16())
    assert not any(
        differing_bytes(check_operands(emulation, node, granularity, wide), found).values()
    )


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("factor", [0.0, 1e-38, 1e-30, 1e-4, 3e3, 1e30])
def test_small_and_large_values(
    sage2_emulation: ctypes.CDLL,
    make_node: Callable[..., Any],
    factor: float,
    granularity: Granularity,
) -> None:
    node = make_node(1, 70, 2)
    node.tensors[0].mul_(factor)
    node.tensors[2].mul_(min(factor, 1e3))
    check_operands(sage2_emulation, node, granularity, wide=False)


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


@pytest.mark.parametrize("wide", [False, True], ids=["e4m3", "fp16"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "length"),
    [(1, 1, 1, 1), (1, 64, 1, 64), (1, 65, 2, 70), (2, 127, 1, 127), (1, 130, 1, 136)],
)
def test_attention_equals_the_reference(
    sage2_emulation: ctypes.CDLL,
    sage2_wide_emulation: ctypes.CDLL,
    make_node: Callable[..., Any],
    batch: int,
    tokens: int,
    heads: int,
    length: int,
    granularity: Granularity,
    wide: bool,
) -> None:
    node = make_node(batch, tokens, heads, length)
    region = region_of(node, granularity)
    emulation = sage2_wide_emulation if wide else sage2_emulation
    found = emulate(emulation, region, node.tensors, attention=True).out
    attributes = dataclasses.asdict(region.attributes)
    del attributes["per_warp"], attributes["row_scaled"]
    wanted = sage2_reference.attention_node(
        *node.tensors, **attributes, granularity=granularity, sum_keys=16 if wide else 32
    )
    assert relative(found, wanted) < 1e-4
    assert (found[:, tokens:] == 0).all()
    q, k, v = (x.float().transpose(1, 2) for x in true_rows(node))
    exact = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    assert relative(found[:, :tokens], exact) < 0.06
