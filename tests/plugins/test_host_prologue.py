"""The prologue's device code, run on the host, against the torch reference: byte for byte."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastwan.plugins import nvfp4, packing
from fastwan.plugins.regions.sage_attention3 import SageLayout

ReadOperands = Callable[..., packing.Operands]


def addresses(tensors: tuple[torch.Tensor, ...]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*(x.data_ptr() for x in tensors))


def emulate(emulation: ctypes.CDLL, node: Any) -> tuple[SageLayout, torch.Tensor, torch.Tensor]:
    """Run the prologue; returns the layout, the workspace and the output rows it clears."""
    desc, layout = node.region.desc(), SageLayout()
    emulation.fastwan_emulate_layout(ctypes.byref(desc), ctypes.byref(layout))
    workspace = torch.full((layout.total,), 0xA5, dtype=torch.uint8)
    region = node.region
    out = torch.full(
        (region.batch, region.length, region.attributes.num_heads * 128), 7.0
    ).bfloat16()
    emulation.fastwan_emulate_prologue(
        ctypes.byref(desc),
        addresses(node.tensors),
        addresses((out,)),
        ctypes.c_void_p(workspace.data_ptr()),
    )
    return layout, workspace, out


def check(
    emulation: ctypes.CDLL, read_operands: ReadOperands, node: Any, emulated: bool = False
) -> None:
    layout, workspace, out = emulate(emulation, node)
    wanted = node.operands()
    stored = read_operands(workspace, layout, wanted, emulated)
    for name, found, expected in zip(packing.Operands._fields, stored, wanted, strict=True):
        wrong = (found != expected).sum().item()
        assert wrong == 0, f"{name}: {wrong} of {expected.numel()} bytes differ"
    region = node.region
    zeros = region.batch * region.attributes.num_heads * layout.padded_tokens * 4
    assert not workspace[layout.delta_s : layout.delta_s + zeros].any()
    assert (out[:, : region.attributes.num_tokens] == 7.0).all()  # the attention's to write
    assert (out[:, region.attributes.num_tokens :] == 0.0).all()


@pytest.mark.parametrize("heads", [2, 12])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("tokens", [1, 127, 128, 129, 200, 1560])
def test_prologue_writes_the_bytes_of_the_reference(
    emulation: ctypes.CDLL,
    make_node: Callable[..., Any],
    read_operands: ReadOperands,
    tokens: int,
    batch: int,
    heads: int,
) -> None:
    check(emulation, read_operands, make_node(batch, tokens, heads))


@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "length"), [(1, 1, 2, 1), (2, 128, 3, 130), (2, 129, 2, 300)]
)
def test_prologue_of_the_emulated_library_writes_the_same_bytes_elsewhere(
    emulation: ctypes.CDLL,
    emulation_for_hopper: ctypes.CDLL,
    make_node: Callable[..., Any],
    read_operands: ReadOperands,
    batch: int,
    tokens: int,
    heads: int,
    length: int,
) -> None:
    node = make_node(batch, tokens, heads, length)
    check(emulation_for_hopper, read_operands, node, emulated=True)
    here, there = emulate(emulation_for_hopper, node)[0], emulate(emulation, node)[0]
    assert here.total == there.total == node.region.workspace_bytes
    assert here.k == here.v + 64
    assert here.v_scale > here.k_scale >= here.v + 2 * 64 * batch * heads * here.padded_tokens


@pytest.mark.parametrize(
    ("batch", "tokens", "heads", "length"),
    [(1, 100, 2, 128), (2, 129, 2, 130), (2, 60, 2, 300), (1, 33, 13, 40), (1, 5, 40, 5)],
    ids=["padded", "one row more", "whole tiles more", "13 heads", "40 heads"],
)
def test_rows_behind_the_last_token_do_not_matter(
    emulation: ctypes.CDLL,
    make_node: Callable[..., Any],
    read_operands: ReadOperands,
    batch: int,
    tokens: int,
    heads: int,
    length: int,
) -> None:
    check(emulation, read_operands, make_node(batch, tokens, heads, length))


@pytest.mark.parametrize("factor", [0.0, 1e-38, 1e-30, 1e-4, 3e3, 1e30])
def test_small_and_large_values(
    emulation: ctypes.CDLL,
    make_node: Callable[..., Any],
    read_operands: ReadOperands,
    factor: float,
) -> None:
    node = make_node(1, 40, 2)
    node.tensors[0].mul_(factor)
    node.tensors[2].mul_(min(factor, 1e3))
    check(emulation, read_operands, node)


def convert(function: Any, x: torch.Tensor) -> torch.Tensor:
    codes = torch.empty(x.shape, dtype=torch.uint8)
    pointers = (ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(codes.data_ptr()))
    function(*pointers, ctypes.c_int64(x.numel()))
    return codes


def fine_grid() -> torch.Tensor:
    """Every fp32 whose bit pattern ends in 13 zeros or in their neighbours: all ties and around."""
    top = torch.arange(0, 1 << 19, dtype=torch.int64) << 13
    bits = torch.cat([top, top + 1, top - 1]).to(torch.int32)
    x = bits.view(torch.float32)
    return x[x.isfinite()]


def test_e2m1_without_the_instruction(emulation: ctypes.CDLL) -> None:
    x = fine_grid()
    assert torch.equal(convert(emulation.fastwan_emulate_e2m1, x), nvfp4.round_to_e2m1(x))


def test_e4m3_without_the_instruction(emulation: ctypes.CDLL) -> None:
    x = fine_grid().abs()
    expected = nvfp4.round_to_e4m3(x).view(torch.uint8)
    assert torch.equal(convert(emulation.fastwan_emulate_e4m3, x), expected)
