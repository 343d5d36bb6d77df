"""Keys divided over idle multiprocessors: the schedule, and the merge of the parts."""

from __future__ import annotations

import ctypes
import math
from itertools import pairwise

import pytest
import torch

from fastwan.plugins import attention_reference
from fastwan.plugins.regions.sage_attention3 import KeySplit, SageAttention3, SageAttributes
from fastwan.quality.selftest.regions import compile_for_host, node_inputs

FULL = SageAttention3(1, 32768, SageAttributes(12, 32760))
SHAPES = (
    FULL,
    *(SageAttention3(1, tokens, SageAttributes(12, tokens)) for tokens in (1, 128, 1921, 4096)),
    SageAttention3(2, 20280, SageAttributes(3, 20280)),
    SageAttention3(1, 1920, SageAttributes(12, 1920)),
)
PROCESSORS = range(1, 201)
SCALE = 128**-0.5
C = torch.tensor(SCALE * math.log2(math.e), dtype=torch.float32).item()


@pytest.fixture(scope="module")
def parts_emulation(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = compile_for_host(tmp_path_factory.mktemp("parts"), "emulate_parts.cpp")
    library.fastwan_emulate_split_bytes.restype = ctypes.c_int64
    return library


def scheduled(
    emulation: ctypes.CDLL, region: SageAttention3, processors: int
) -> tuple[int, int, list[int]]:
    """Whole tiles, parts and bounds of the parts, as the library's launch has them."""
    whole, parts, bounds = ctypes.c_int(), ctypes.c_int(), (ctypes.c_int * 15)()
    emulation.fastwan_emulate_key_split(
        region.tiles, region.key_tiles, processors,
        ctypes.byref(whole), ctypes.byref(parts), bounds,
    )  # fmt: skip
    return whole.value, parts.value, list(bounds[: parts.value + 1])


@pytest.mark.parametrize("region", SHAPES, ids=str)
def test_every_tile_of_queries_sees_every_tile_of_keys_once(
    parts_emulation: ctypes.CDLL, region: SageAttention3
) -> None:
    for processors in PROCESSORS:
        whole, parts, bounds = scheduled(parts_emulation, region, processors)
        assert (bounds[0], bounds[-1]) == (0, region.key_tiles)
        assert all(begin < end for begin, end in pairwise(bounds))
        rest = region.tiles - whole
        blocks = [(slot // parts, slot % parts) for slot in range(rest * parts if parts > 1 else 0)]
        seen = {
            (tile, key) for tile, part in blocks for key in range(bounds[part], bounds[part + 1])
        }
        assert len(seen) == (rest * region.key_tiles if parts > 1 else 0)
        assert len(seen) == sum(bounds[part + 1] - bounds[part] for _, part in blocks)
        assert parts > 1 or rest == 0


@pytest.mark.parametrize("region", SHAPES, ids=str)
def test_the_package_and_the_library_divide_alike(
    parts_emulation: ctypes.CDLL, region: SageAttention3
) -> None:
    for processors in PROCESSORS:
        whole, parts, _ = scheduled(parts_emulation, region, processors)
        assert region.key_split(processors) == KeySplit(whole, parts, region.tiles - whole)
    assert parts_emulation.fastwan_emulate_split_bytes(region.key_tiles) == region.split_bytes


def test_parts_have_room_and_keys_and_one_wave(parts_emulation: ctypes.CDLL) -> None:
    divided = 0
    for region in SHAPES:
        for processors in PROCESSORS:
            _, parts, others = region.key_split(processors)
            if parts == 1:
                continue
            divided += 1
            _, _, bounds = scheduled(parts_emulation, region, processors)
            sizes = [end - begin for begin, end in pairwise(bounds)]
            assert min(sizes) >= 8
            assert max(sizes) - min(sizes) <= 1
            assert sizes[-1] == min(sizes)
            assert others * parts <= min(processors, 192)
            assert others * parts * (128 * 128 + 256) * 4 <= region.split_bytes
    assert divided > 100


def test_a_last_wave_that_is_well_filled_stays_as_published() -> None:
    assert FULL.key_split(170) == KeySplit(3060, 14, 12)
    assert FULL.key_split(132) == KeySplit(3036, 3, 36)
    assert FULL.key_split(48) == KeySplit(3072, 1, 0)
    for processors in PROCESSORS:
        filled = (FULL.tiles % processors or processors) / processors
        assert (FULL.key_split(processors).parts > 1) == (filled <= 0.5)


def test_waves_of_the_published_schedule_and_of_ours() -> None:
    assert FULL.waves(170, divided=False) == 19
    assert FULL.waves(170) == 18 + 19 / 256
    assert FULL.waves(48) == FULL.waves(48, divided=False) == 64
    for processors in PROCESSORS:
        assert FULL.tiles / processors <= FULL.waves(processors)
        assert FULL.waves(processors) <= FULL.waves(processors, divided=False)


def slots_of(parts: list[attention_reference.Sums]) -> torch.Tensor:
    """Sums of one tile as the kernel stores them, one part after the other."""
    rows = [
        torch.cat([part.out[0].flatten(), part.row_max[0, :, 0], part.row_sum[0, :, 0]])
        for part in parts
    ]
    return torch.stack(rows).contiguous()


def random_parts(count: int, spread: float) -> list[attention_reference.Sums]:
    generator = torch.Generator().manual_seed(count)
    return [
        attention_reference.Sums(
            torch.randn(1, 128, 128, generator=generator),
            torch.rand(1, 128, 1, generator=generator) + 0.1,
            torch.randn(1, 128, 1, generator=generator) * spread,
        )
        for _ in range(count)
    ]


def merged(emulation: ctypes.CDLL, parts: list[attention_reference.Sums]) -> torch.Tensor:
    slots, out = slots_of(parts), torch.empty(128, 128)
    emulation.fastwan_emulate_merge(
        ctypes.c_void_p(slots.data_ptr()), len(parts), ctypes.c_float(C),
        ctypes.c_void_p(out.data_ptr()),
    )  # fmt: skip
    return out


@pytest.mark.parametrize("spread", [0.0, 10.0, 1e4])
@pytest.mark.parametrize("count", [2, 3, 13, 14])
def test_the_merge_is_that_of_the_reference(
    parts_emulation: ctypes.CDLL, count: int, spread: float
) -> None:
    parts = random_parts(count, spread)
    found, expected = merged(parts_emulation, parts), attention_reference.merge_sums(parts, C)[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    # A merge that took the maxima for equal would pass where they are.
    if spread:
        equal = [part._replace(row_max=torch.zeros(1, 128, 1)) for part in parts]
        assert (
            attention_reference.merge_sums(equal, C)[0] - expected
        ).norm() > 0.1 * expected.norm()


@pytest.mark.parametrize(
    ("batch", "heads", "tokens", "rows", "first"),
    [
        # Rows behind the tokens inside a divided tile, up to its end and into tiles behind it.
        (1, 1, 250, 256, 0), (1, 2, 250, 256, 3), (2, 1, 130, 137, 1), (2, 2, 129, 384, 5),
        (1, 2, 250, 400, 2), (1, 1, 256, 256, 1), (1, 3, 128, 128, 1),
    ],
)  # fmt: skip
def test_the_merge_writes_the_tokens_of_its_tiles_and_nothing_else(
    parts_emulation: ctypes.CDLL, batch: int, heads: int, tokens: int, rows: int, first: int
) -> None:
    query_tiles = -(-tokens // 128)
    tiles = range(first, batch * heads * query_tiles)
    parts = [random_parts(3 + tile, 1.0)[:3] for tile in tiles]
    slots = torch.cat([slots_of(each) for each in parts])
    # Room for a tile behind the output, so that what is written there is seen.
    space = torch.full((batch * rows + 128, heads, 128), 7.0, dtype=torch.bfloat16)
    out = space[: batch * rows].view(batch, rows, heads, 128)
    expected = out.clone()
    for tile, each in zip(tiles, parts, strict=True):
        row, begin = divmod(tile, query_tiles)
        begin *= 128
        end = min(begin + 128, tokens)
        merged_rows = attention_reference.merge_sums(each, C)[0, : end - begin]
        expected[row // heads, begin:end, row % heads] = merged_rows.bfloat16()
    parts_emulation.fastwan_emulate_merge_tiles(
        ctypes.c_void_p(slots.data_ptr()), ctypes.c_void_p(out.data_ptr()), first, len(tiles),
        query_tiles, heads, 3, tokens, rows, ctypes.c_float(C),
    )  # fmt: skip
    assert len(tiles) > 0
    # A sum of another order may turn a tie of bf16.
    assert ((out == 7.0) == (expected == 7.0)).all()
    assert (space[batch * rows :] == 7.0).all()
    torch.testing.assert_close(out, expected, rtol=2.0**-7, atol=1e-5)
    assert (out == expected).float().mean() > 0.99


def test_rows_without_a_sum_are_zero(parts_emulation: ctypes.CDLL) -> None:
    parts = [part._replace(row_sum=torch.zeros(1, 128, 1)) for part in random_parts(3, 1.0)]
    assert (merged(parts_emulation, parts) == 0).all()
    assert (attention_reference.merge_sums(parts, C) == 0).all()


@pytest.mark.parametrize("rows", [1921, 2048])
def test_a_region_carries_the_multiprocessors_that_it_is_launched_for(rows: int) -> None:
    region = SageAttention3(1, rows, SageAttributes(1, 1921))
    assert (region.processors, region.desc().processors) == (0, 0)
    for processors in (15, 16, 170):
        on = region.on(processors)
        assert on.desc().processors == processors
        assert len(on.launches) == (4 if on.key_split(processors).others else 2)
    assert region.on(15).key_split(15).parts == 2
    inputs = node_inputs(region, "cpu")
    whole, divided, even = (region.on(n).reference(*inputs)[0] for n in (0, 15, 16))
    assert torch.equal(whole, even)
    # 15 of 16 tiles are whole; the last one has a token, the rest of its rows are zero.
    assert torch.equal(whole[:, :1920], divided[:, :1920])
    assert (divided[:, 1921:] == 0).all()


@pytest.fixture(scope="module")
def operands() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(7)
    return tuple(torch.randn(1, 600, 2, 128, generator=generator).bfloat16() for _ in range(3))


@pytest.mark.parametrize("exact_max", [False, True])
def test_divided_keys_are_as_near_to_exact_attention(
    operands: tuple[torch.Tensor, ...], exact_max: bool
) -> None:
    q, k, v = operands
    divided = attention_reference.DividedKeys(7, 3)
    whole = attention_reference.sage_attention(q, k, v, SCALE, exact_max=exact_max).float()
    found = attention_reference.sage_attention(
        q, k, v, SCALE, exact_max=exact_max, divided=divided
    ).float()
    # Ten tiles: the first seven are the five of head 0 and two of head 1.
    assert torch.equal(found[:, :, 0], whole[:, :, 0])
    assert torch.equal(found[:, :256, 1], whole[:, :256, 1])
    assert not torch.equal(found[:, 256:, 1], whole[:, 256:, 1])
    heads = (x.float().transpose(1, 2) for x in operands)
    exact = torch.nn.functional.scaled_dot_product_attention(*heads, scale=SCALE).transpose(1, 2)
    errors = [float((x - exact)[:, 256:, 1].norm()) for x in (whole, found)]
    assert errors[1] < 1.05 * errors[0]
