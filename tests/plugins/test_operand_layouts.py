"""Where each value of q, k and v lies in the packed operands, by formulas read one at a time."""

from __future__ import annotations

import pytest
import torch

from fastwan.errors import BadInput
from fastwan.plugins import nvfp4, packing

BATCH, LENGTH, HEADS, PADDED = 2, 200, 3, 256


def scale_offset(row: int, group: int, groups: int) -> int:
    """Byte of scale (row, group) within a head."""
    tile = (row // 64) * 64 * groups + (group // 4) * 256
    return tile + (row % 16) * 16 + ((row // 16) % 4) * 4 + group % 4


def stored_token(row: int) -> int:
    """Token whose key is stored at `row`."""
    within = row % 32
    return row - within + (within // 8) * 2 + ((within % 8) // 2) * 8 + within % 2


def quantise(values: torch.Tensor) -> tuple[list[int], int]:
    """Codes of 16 values and the byte of their scale."""
    scale = nvfp4.round_to_e4m3(values.float().abs().amax() / 6)
    inverse = 1.0 / scale.float() if scale.float() > 0 else torch.zeros(())
    codes = nvfp4.round_to_e2m1(values.float() * inverse).tolist()
    return codes, int(scale.view(torch.uint8))


@pytest.fixture(scope="module")
def rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    q, k, v = (
        torch.randn(BATCH, LENGTH, HEADS, 128, generator=generator).bfloat16() for _ in range(3)
    )
    v[1, 16:32, 2, 5] = 0
    return q, k, v


@pytest.fixture(scope="module")
def operands(rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> packing.Operands:
    return packing.pack_operands(*rows)


def padded(x: torch.Tensor, token: int) -> torch.Tensor:
    return x[:, token] if token < LENGTH else torch.zeros_like(x[:, 0])


def test_shapes(operands: packing.Operands) -> None:
    rows, values = (BATCH, HEADS, PADDED), (BATCH, HEADS, 128)
    assert [tuple(x.shape) for x in operands] == [
        (*rows, 64), (*rows, 8), (*rows, 64), (*rows, 8),
        (*values, PADDED // 2), (*values, PADDED // 16),
    ]  # fmt: skip
    assert {x.dtype for x in operands} == {torch.uint8}


@pytest.mark.parametrize("name", ["q", "k"])
def test_rows_of_queries_and_keys(
    name: str,
    rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    operands: packing.Operands,
) -> None:
    source = rows[0] if name == "q" else rows[1]
    codes = getattr(operands, name)
    scales = getattr(operands, name + "_scale")
    for batch, head, row, group in [
        (0, 0, 0, 0), (0, 1, 9, 3), (1, 2, 31, 7), (1, 0, 63, 4), (0, 2, 64, 1), (1, 1, 77, 5),
        (0, 0, 127, 7), (1, 2, 130, 2), (0, 1, 199, 6), (1, 0, 200, 0), (1, 2, 255, 7),
    ]:  # fmt: skip
        token = row if name == "q" else stored_token(row)
        values = padded(source, token)[batch, head, group * 16 : group * 16 + 16]
        expected, scale = quantise(values)
        found = nvfp4.unpack_nibbles(codes[batch, head, row, group * 8 : group * 8 + 8])
        assert found.tolist() == expected, (batch, head, row, group)
        assert scales[batch, head].flatten()[scale_offset(row, group, 8)] == scale


def test_rows_of_values(
    rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor], operands: packing.Operands
) -> None:
    groups = PADDED // 16
    for batch, head, channel, group in [
        (0, 0, 0, 0), (1, 2, 5, 1), (0, 1, 17, 3), (1, 0, 63, 4), (0, 2, 64, 7), (1, 1, 127, 11),
        (0, 0, 90, 12), (1, 2, 1, 15),
    ]:  # fmt: skip
        tokens = range(group * 16, group * 16 + 16)
        values = torch.stack([padded(rows[2], t)[batch, head, channel] for t in tokens])
        expected, scale = quantise(values)
        found = nvfp4.unpack_nibbles(operands.v[batch, head, channel, group * 8 : group * 8 + 8])
        assert found.tolist() == expected, (batch, head, channel, group)
        offset = scale_offset(channel, group, groups)
        assert operands.v_scale[batch, head].flatten()[offset] == scale


def decode(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Values [B, H, R, K] of packed rows and their swizzled scales."""
    *lead, count, groups = scales.shape
    offsets = torch.tensor(
        [[scale_offset(r, g, groups) for g in range(groups)] for r in range(count)]
    )
    scale = scales.flatten(-2)[..., offsets].view(torch.float8_e4m3fn).float()
    values = nvfp4.decode_e2m1(nvfp4.unpack_nibbles(codes)).unflatten(-1, (groups, 16))
    return (values * scale.unsqueeze(-1)).flatten(-2).view(*lead, count, -1)


def test_operands_decode_to_what_the_reference_attends_to(
    rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor], operands: packing.Operands
) -> None:
    q, k, v = (packing.heads_first(x) for x in rows)
    expected = packing.fake_quantize_groups(q, 0)
    assert torch.equal(decode(operands.q, operands.q_scale), expected)
    tokens = torch.tensor([stored_token(row) for row in range(PADDED)])
    expected = packing.fake_quantize_groups(k, 0)[:, :, tokens]
    assert torch.equal(decode(operands.k, operands.k_scale), expected)
    expected = packing.fake_quantize_groups(v.transpose(2, 3), 0)
    assert torch.equal(decode(operands.v, operands.v_scale), expected)


def test_every_scale_has_its_own_byte() -> None:
    for rows, groups in ((128, 8), (256, 8), (128, 16)):
        offsets = {scale_offset(r, g, groups) for r in range(rows) for g in range(groups)}
        assert offsets == set(range(rows * groups))
        scales = torch.arange(rows * groups, dtype=torch.int32).view(rows, groups)
        swizzled = packing.swizzle_scales(scales).flatten()
        assert all(
            int(swizzled[scale_offset(r, g, groups)]) == int(scales[r, g])
            for r in range(rows)
            for g in range(groups)
        )


def test_a_pair_of_threads_holds_sixteen_neighbouring_tokens() -> None:
    # Of 32 stored keys, thread t of four gets columns 2t, 2t+1, 8+2t, 9+2t, 16+2t, ... of an MMA.
    permutation = packing.key_permutation(64)
    for pair in range(2):
        columns = [
            block * 8 + 2 * thread + i
            for thread in (2 * pair, 2 * pair + 1)
            for block in range(4)
            for i in range(2)
        ]
        assert sorted(permutation[columns].tolist()) == list(range(16 * pair, 16 * pair + 16))


def test_a_head_dimension_other_than_128_is_refused() -> None:
    good = torch.zeros(1, 4, 1, 128).bfloat16()
    packing.pack_operands(good, good, good)
    bad = torch.zeros(1, 4, 1, 64).bfloat16()
    with pytest.raises(BadInput, match="128"):
        packing.pack_operands(bad, bad, bad)
