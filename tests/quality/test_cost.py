"""The cost model against computation by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from fastwan.errors import BadInput
from fastwan.manifest import Engine, Region, RegionNode, TensorSpec
from fastwan.plugins.regions.sage_attention3 import SageAttention3, SageAttributes
from fastwan.quality.cost import (
    Cost,
    engine_cost,
    flops,
    kernel_cost,
    region_cost,
    region_op_cost,
    total,
    usual_records,
    usual_size,
)
from fastwan.quality.gpus import GPUS, UNKNOWN

GPU = GPUS["rtx5090"]
L, C, FFN, TEXT = 32768, 1536, 8960, 512


def gemm(kit: SimpleNamespace, n: int, k: int) -> object:
    """An FP4 GEMM of a block at full size as the builder records it."""
    tiles = k // 64
    return kit.record(
        "gemm",
        inputs=[("FP4E2M1", (1, L, k)), ("FP8", (1, L // 128, 4, 32, tiles, 4))],
        constants=[
            ("FP4E2M1", (1, k, n)),
            ("Float", (1,)),
            ("Float", (1,)),
            ("FP8", (1, tiles, 4, n // 128, 4, 32)),
        ],
        outputs=[("BFloat16", (1, L, n))],
    )


def test_bytes_and_operations_of_an_fp4_gemm(kit: SimpleNamespace) -> None:
    cost = kernel_cost(gemm(kit, FFN, C), GPU)
    activation = L * C // 2 + L * C // 16
    weight = FFN * C // 2 + FFN * C // 16
    assert cost.bytes_moved == activation + weight + 8 + L * FFN * 2
    assert cost.flops == 2 * L * FFN * C
    assert cost.memory_bound_bytes == 0
    # 623 MB at 1.79 TB/s take longer than 902 GFLOP at 1676 TFLOPS: 0.348 against 0.538 ms.
    assert cost.floor_seconds == pytest.approx(2 * L * FFN * C / 1676e12)
    assert cost.seconds == pytest.approx(max(cost.bytes_moved / 1.79e12, cost.floor_seconds) + 2e-6)
    assert cost.seconds == pytest.approx(0.540e-3, rel=5e-3)


def test_attention_of_the_builder(kit: SimpleNamespace) -> None:
    record = kit.record(
        "_gemm_mha_v2_myl0_11",
        "kgen",
        inputs=[
            ("BFloat16", (12, L, 128)),
            ("BFloat16", (12, 128, TEXT)),
            ("BFloat16", (12, TEXT, 128)),
        ],
        outputs=[("BFloat16", (12, L, 128))],
    )
    assert record.kind == "attention"
    assert flops(record) == 4 * 12 * L * TEXT * 128
    assert kernel_cost(record, GPU).floor_seconds == pytest.approx(4 * C * L * TEXT / 214e12)


def test_convolution(kit: SimpleNamespace) -> None:
    record = kit.record(
        "conv",
        "correlation",
        inputs=[("Half", (1, 512, 60, 104)), ("Half", (1, 256, 60, 104))],
        constants=[("Half", (256, 512, 3, 3)), ("Float", (1,)), ("Half", (1, 256, 1, 1))],
        outputs=[("Half", (1, 256, 60, 104))],
    )
    assert flops(record) == 2 * 256 * 60 * 104 * 512 * 9


def test_a_vector_times_a_matrix_is_not_taken_for_its_bias(kit: SimpleNamespace) -> None:
    record = kit.record(
        "__myl_FcAdd_myl0_4",
        "runtime_fusion",
        inputs=[("BFloat16", (1, 256))],
        constants=[("BFloat16", (1, 9216)), ("BFloat16", (256, 9216))],
        outputs=[("BFloat16", (1, 9216))],
    )
    assert record.kind == "gemm"
    assert flops(record) == 2 * 256 * 9216


def test_a_gemm_that_writes_its_result_twice_multiplies_once(kit: SimpleNamespace) -> None:
    record = kit.record(
        "__myl_FcAddSilu_myl0_2",
        "runtime_fusion",
        inputs=[("BFloat16", (1, C))],
        constants=[("BFloat16", (1, C)), ("BFloat16", (C, C))],
        outputs=[("BFloat16", (1, C)), ("BFloat16", (1, C))],
    )
    assert flops(record) == 2 * C * C
    assert kernel_cost(record, GPU).bytes_moved == 2 * (C * C + 4 * C)


@pytest.mark.parametrize(("length", "rows"), [(1, 1), (200, 200)])
def test_a_batched_gemm_of_a_prompt(kit: SimpleNamespace, length: int, rows: int) -> None:
    record = kit.record(
        "v/MatMul+k/MatMul+q/MatMul_myl0_2",
        inputs=[("BFloat16", (1, -1, 64))],
        constants=[("BFloat16", (3, 64, 32)), ("Float", (1,))],
        outputs=[("BFloat16", (3, -1, 32))],
    )
    assert flops(record, length) == 2 * 3 * rows * 64 * 32


def test_a_memory_kernel_costs_its_traffic(kit: SimpleNamespace) -> None:
    record = kit.record(
        "gelu", "kgen", inputs=[("BFloat16", (1, L, FFN))], outputs=[("BFloat16", (1, L, FFN))]
    )
    cost = kernel_cost(record, GPU)
    assert cost.bytes_moved == cost.memory_bound_bytes == 2 * 2 * L * FFN
    assert cost.seconds == pytest.approx(1174.4e6 / 1.79e12 + 2e-6, rel=1e-4)
    assert (cost.flops, cost.floor_seconds) == (0, 0)


def test_one_block_by_hand(kit: SimpleNamespace) -> None:
    """The FP4 GEMMs of a block: 0.049 s in 30 of them, as the published peak allows."""
    shapes = [(3 * C, C), (C, C), (C, C), (C, C), (FFN, C), (C, FFN)]
    block = total(kernel_cost(gemm(kit, n, k), GPU) for n, k in shapes)
    by_hand = 2 * L * C * (3 * C + 3 * C + 2 * FFN)
    assert block.flops == by_hand
    assert block.kernels == 6
    assert 30 * by_hand / 1676e12 == pytest.approx(0.049, rel=0.02)
    assert (block * 30).floor_seconds == pytest.approx(30 * by_hand / 1676e12)


def test_attention_region_by_hand() -> None:
    tokens = 32760
    op = SageAttention3(1, tokens, SageAttributes(12, tokens))
    cost = region_op_cost(op, replace(GPU, sms=0))
    # Packed q, k, v and a row of fp32 for each token; the tables of RoPE are read once.
    exchanged = 3 * L * C * 9 // 16 + 12 * L * 4
    prologue = tokens * 3 * C * 2 + 2 * tokens * 64 * 4 + 5 * C * 2 + 12 + exchanged
    assert prologue == pytest.approx(405e6, rel=1e-3)
    assert cost.memory_bound_bytes == prologue
    assert cost.bytes_moved == prologue + exchanged + tokens * C * 2
    assert cost.flops == 4 * tokens * tokens * C
    # 0.226 ms of memory traffic, then 8.68 ms of arithmetic; 30 blocks: 0.26 s.
    assert cost.seconds == pytest.approx(prologue / 1.79e12 + cost.flops / 760e12 + 4e-6)
    assert (cost * 30).floor_seconds == pytest.approx(0.26, rel=5e-3)


def test_divided_keys_cost_two_launches_and_their_sums() -> None:
    op = SageAttention3(1, 32760, SageAttributes(12, 32760))
    whole = region_op_cost(op, replace(GPU, sms=48))
    assert whole == region_op_cost(op, replace(GPU, sms=0))
    assert GPU.sms == 170
    divided = region_op_cost(op, GPU)
    sums = 12 * 14 * (128 * 128 + 2 * 128) * 4
    rows = 11 * 128 + 120  # true ones of the last 12 tiles
    assert divided.kernels == whole.kernels + 2
    assert divided.flops == whole.flops
    assert divided.memory_bound_bytes == whole.memory_bound_bytes + sums + rows * 256
    # q of these tiles, and k, v and the zero term of their head, are read once more.
    again = 12 * 128 * 72 + 256 * 128 * (2 * 72 + 4)
    assert divided.bytes_moved == whole.bytes_moved + 2 * sums + again
    assert divided.seconds - whole.seconds < 12e-6


def region(op: str) -> Region:
    described = SageAttention3(1, 256, SageAttributes(2, 180))
    names = tuple(spec.name for spec in described.inputs)
    attributes: dict[str, int | float | str] = {"num_tokens": 180, "num_heads": 2}
    node = RegionNode(op=op, inputs=names, outputs=("out",), attributes=attributes)
    return Region(
        component="dit", after="segment_00", nodes=(node,), inputs=described.inputs[:1],
        constants=described.inputs[1:], outputs=described.outputs,
    )  # fmt: skip


def test_a_region_is_priced_by_its_node() -> None:
    expected = region_op_cost(SageAttention3(1, 256, SageAttributes(2, 180)), GPU)
    assert region_cost(region("SageAttention3"), GPU) == expected
    with pytest.raises(BadInput, match="launches no Other"):
        region_cost(region("Other"), GPU)


@pytest.mark.parametrize(
    ("uppers", "size", "profile"),
    [((64, 128, 256, 512), 128, 1), ((64, 512), 128, 1), ((64,), 64, 0), ((128, 512), 128, 0)],
)
def test_a_prompt_is_priced_in_its_own_profile(
    kit: SimpleNamespace, uppers: tuple[int, ...], size: int, profile: int
) -> None:
    lowers = (1, *(upper + 1 for upper in uppers[:-1]))
    bounds = zip(lowers, uppers, strict=True)
    engine = Engine(
        file="t",
        component="text_encoder",
        inputs=(TensorSpec(name="x", dtype="bfloat16", shape=(1, "length", 4)),),
        outputs=(),
        scratch_bytes=0,
        profiles={"x": tuple(((1, a, 4), (1, b, 4), (1, b, 4)) for a, b in bounds)},
    )
    one = kit.record("k", "kgen", inputs=[], outputs=[("BFloat16", (1, -1, 4))])
    records = [replace(one, profile=index) for index in range(len(uppers))]
    assert usual_size(engine) == size
    assert usual_records(engine, records) == [records[profile]]
    assert engine_cost(engine, records, GPU).bytes_moved == 2 * 4 * size


def test_a_fixed_engine_is_priced_whole(kit: SimpleNamespace) -> None:
    spec = TensorSpec(name="x", dtype="bfloat16", shape=(1, 4))
    engine = Engine(file="t", component="dit", inputs=(spec,), outputs=(), scratch_bytes=0)
    records = [kit.record("k", "kgen", inputs=[], outputs=[("BFloat16", (1, 4))])] * 2
    assert usual_size(engine) == 1
    assert usual_records(engine, records) == records


def test_without_rates_there_are_bytes_but_no_time(kit: SimpleNamespace) -> None:
    cost = kernel_cost(gemm(kit, C, C), UNKNOWN)
    assert cost.flops == 2 * L * C * C
    for each in (cost, Cost() + cost, cost + Cost(), cost * 3):
        assert math.isnan(each.seconds)
        assert math.isnan(each.floor_seconds)
    assert math.isnan(kernel_cost(kit.move(1000), UNKNOWN).seconds)


def test_an_attention_without_a_rate_has_no_time() -> None:
    op = SageAttention3(1, 256, SageAttributes(2, 180))
    assert region_op_cost(op, GPU).seconds > 0
    assert math.isnan(region_op_cost(op, replace(GPU, attention={})).seconds)


def test_host_calls_cost_nothing(kit: SimpleNamespace) -> None:
    record = kit.record("shapes", "shape_call", inputs=[], outputs=[])
    assert kernel_cost(record, GPU) == Cost()
