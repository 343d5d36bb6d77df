"""Rows of the attention from packed operands are those of the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastwan.plugins import attention_reference, packing
from fastwan.plugins.regions.sage_attention3 import SageAttention3, SageAttributes, SageLayout
from fastwan.plugins.sampled_attention import Packed, attend

HEADS = 2


def packed_of(operands: packing.Operands, tokens: int, apart: int) -> Packed:
    """Operands in a workspace, pieces of k and v `apart` bytes from each other."""
    layout = SageLayout(padded_tokens=-(-tokens // 128) * 128)
    parts, offset = [], 0
    for name, tensor in zip(packing.Operands._fields, operands, strict=True):
        wide = apart if name in ("k", "v") else 64
        pieces = tensor.reshape(-1, 64).numpy()
        parts.append(np.pad(pieces, ((0, 0), (0, wide - 64)), constant_values=0xA5).reshape(-1))
        setattr(layout, name, offset)
        offset += parts[-1].size
    return Packed(np.concatenate(parts), layout, apart)


@pytest.mark.parametrize("exact_max", [False, True])
@pytest.mark.parametrize(("tokens", "apart"), [(1, 64), (128, 64), (129, 128), (300, 64)])
def test_a_tile_is_that_of_the_reference(tokens: int, apart: int, exact_max: bool) -> None:
    generator = torch.Generator().manual_seed(tokens)
    q, k, v = (
        (torch.randn(1, tokens, HEADS, 128, generator=generator) * 2).bfloat16() for _ in range(3)
    )
    region = SageAttention3(1, tokens, SageAttributes(HEADS, tokens, exact_max=exact_max))
    scale = region.attributes.softmax_scale
    expected = (
        attention_reference.sage_attention(q, k, v, scale, exact_max=exact_max).float().numpy()
    )
    packed = packed_of(packing.pack_operands(q, k, v), tokens, apart)
    for head in range(HEADS):
        for tile in range(-(-tokens // 128)):
            wanted = expected[0, 128 * tile : 128 * tile + 128, head]
            found = attend(region, packed, head, tile)[: len(wanted)]
            assert np.linalg.norm(found - wanted) <= 4e-3 * np.linalg.norm(wanted)


def test_divided_keys_are_those_of_the_reference() -> None:
    tokens = 650
    generator = torch.Generator().manual_seed(3)
    q, k, v = (
        (torch.randn(1, tokens, HEADS, 128, generator=generator) * 2).bfloat16() for _ in range(3)
    )
    region = SageAttention3(1, tokens, SageAttributes(HEADS, tokens))
    divided = attention_reference.DividedKeys(region.tiles - 2, 3)
    scale = region.attributes.softmax_scale
    expected = attention_reference.sage_attention(q, k, v, scale, divided=divided).float().numpy()
    packed = packed_of(packing.pack_operands(q, k, v), tokens, 64)
    for tile, parts in ((3, 1), (4, 3), (5, 3)):
        wanted = expected[0, 128 * tile : 128 * tile + 128, HEADS - 1]
        found = attend(region, packed, HEADS - 1, tile, parts)[: len(wanted)]
        assert np.linalg.norm(found - wanted) <= 4e-3 * np.linalg.norm(wanted)
    whole = attend(region, packed, HEADS - 1, 5)[: len(wanted)]
    assert np.linalg.norm(whole - wanted) > 8e-3 * np.linalg.norm(wanted)


def test_operands_of_another_head_give_other_rows() -> None:
    q, k, v = (torch.randn(1, 40, HEADS, 128).bfloat16() for _ in range(3))
    region = SageAttention3(1, 40, SageAttributes(HEADS, 40))
    packed = packed_of(packing.pack_operands(q, k, v), 40, 64)
    first, second = attend(region, packed, 0, 0)[:40], attend(region, packed, 1, 0)[:40]
    assert np.linalg.norm(first - second) > 0.5 * np.linalg.norm(first)
