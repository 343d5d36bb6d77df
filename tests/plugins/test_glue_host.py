"""Device code of the glue, run on the host, against the torch reference: byte for byte."""

from __future__ import annotations

import ctypes
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fastwan.export.models.layers import layer_norm, rms_norm
from fastwan.plugins import glue_reference, nvfp4
from fastwan.plugins.regions.cross_attention import CrossAttention, CrossAttributes
from fastwan.plugins.regions.gelu_quantize import GeluQuantize
from fastwan.plugins.regions.glue import GlueOp, ScalableOp
from fastwan.plugins.regions.norm_quantize import NormQuantize
from fastwan.plugins.regions.quantize import Quantize
from fastwan.plugins.regions.residual_norm import ResidualNorm
from fastwan.plugins.regions.residual_norm_quantize import NormAttributes, ResidualNormQuantize
from fastwan.quality.region_figures import difference
from fastwan.quality.selftest.glue import glue_inputs, glue_outputs
from testkit.glue_nodes import BOUNDARIES, factors_of

ROWS = [(1, 16), (3, 48), (17, 240), (128, 256), (129, 8960)]
"""Rows and columns: less than a block of threads, ragged ends of one, and true widths."""
SMALLEST_SEEN = 2.0**-11
"""A quarter of the smallest scale: up to here every code is 0."""
FACTORS = factors_of(Quantize(17, 240))


def addresses(tensors: list[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*(x.data_ptr() for x in tensors))


def emulate(emulation: ctypes.CDLL, op: GlueOp, inputs: list[Tensor]) -> list[Tensor]:
    outputs, desc = glue_outputs(op), op.desc()
    emulation.fastwan_emulate_glue(ctypes.byref(desc), addresses(inputs), addresses(outputs))
    return outputs


def check(emulation: ctypes.CDLL, op: GlueOp, inputs: list[Tensor]) -> list[Tensor]:
    """Run a node and hold it to its reference; returns what it wrote."""
    found = emulate(emulation, op, inputs)
    assert difference(op, found, op.reference(*inputs)) <= op.limit
    return found


def every_bf16() -> Tensor:
    """All finite bf16 numbers."""
    x = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    return x[x.isfinite()]


@pytest.mark.parametrize(("rows", "columns"), ROWS)
def test_gelu_writes_the_bytes_of_the_reference(
    glue_emulation: ctypes.CDLL, rows: int, columns: int
) -> None:
    op = GeluQuantize(rows, columns)
    codes, scales = check(glue_emulation, op, glue_inputs(op))
    assert codes.unique().numel() > 1
    assert scales.float().max() > 0


@pytest.mark.parametrize("factor", FACTORS)
def test_gelu_of_small_and_large_values(glue_emulation: ctypes.CDLL, factor: float) -> None:
    op = GeluQuantize(40, 256)
    y, bias = glue_inputs(op)
    inputs = [(x.double() * factor).clamp(-1.5e38, 1.5e38).bfloat16() for x in (y, bias)]
    _, scales = check(glue_emulation, op, inputs)
    assert bool(scales.float().any()) is (factor > 1e-30)


def test_gelu_of_infinity_saturates(glue_emulation: ctypes.CDLL) -> None:
    op = GeluQuantize(2, 32)
    y, bias = glue_inputs(op)
    y[0, 0, 3] = torch.inf
    codes, scales = check(glue_emulation, op, [y, bias])
    assert codes[0, 0, 1] >> 4 == 7
    assert scales[0, 0, 0].float() == 448


def test_gelu_is_exact_for_every_number(glue_emulation: ctypes.CDLL) -> None:
    x = every_bf16()
    wide, found = x.float(), torch.empty(x.shape)
    glue_emulation.fastwan_emulate_gelu(
        ctypes.c_void_p(wide.data_ptr()),
        ctypes.c_void_p(found.data_ptr()),
        ctypes.c_int64(x.numel()),
    )
    expected = glue_reference.gelu_tanh(x)
    seen = expected.abs() >= 2.0**-124
    assert seen.sum() > 32_000
    assert torch.equal(found[seen].bfloat16(), expected[seen])
    # No scale is small enough to make a code of these; only their sign is seen.
    assert found[~seen].abs().max() < 1e-36
    assert torch.equal(found.signbit(), expected.signbit())


def test_gelu_from_the_table_is_that_of_every_number(glue_emulation: ctypes.CDLL) -> None:
    # An infinity stands behind them, so that there is an even number.
    x = torch.cat([every_bf16(), torch.tensor([torch.inf, -torch.inf]).bfloat16()])
    found = torch.empty_like(x)
    glue_emulation.fastwan_emulate_gelu_pairs(
        ctypes.c_void_p(x.data_ptr()),
        ctypes.c_void_p(found.data_ptr()),
        ctypes.c_int64(x.numel() // 2),
    )
    expected = glue_reference.gelu_tanh(x).abs()
    expected[-1] = 0.0
    seen = expected > SMALLEST_SEEN
    assert seen.sum() > 16_000
    assert torch.equal(found[seen], expected[seen])
    assert found[~seen].max() <= SMALLEST_SEEN
    assert not found.signbit().any()


def test_the_reference_of_gelu_is_that_of_torch() -> None:
    x = every_bf16()
    theirs = functional.gelu(x.float(), approximate="tanh").bfloat16().double()
    ours = glue_reference.gelu_tanh(x).double()
    error = (ours - theirs).abs()
    # A unit of bf16, and what torch cancels.
    assert (error <= ours.abs() * 2.0**-7 + x.double().abs() * 2.0**-23).all()
    assert (error == 0).double().mean() > 0.99


@pytest.mark.parametrize(("rows", "columns"), ROWS)
def test_the_quantiser_writes_the_bytes_of_the_reference(
    glue_emulation: ctypes.CDLL, rows: int, columns: int
) -> None:
    op = Quantize(rows, columns)
    codes, _ = check(glue_emulation, op, glue_inputs(op))
    assert codes.unique().numel() > 1


@pytest.mark.parametrize("factor", FACTORS)
def test_the_quantiser_of_small_and_large_values(
    glue_emulation: ctypes.CDLL, factor: float
) -> None:
    op = Quantize(40, 256)
    (x,) = glue_inputs(op)
    check(glue_emulation, op, [(x.double() * factor).bfloat16()])


def test_the_quantiser_saturates_both_infinities(glue_emulation: ctypes.CDLL) -> None:
    op = Quantize(1, 32)
    (x,) = glue_inputs(op)
    x[0, 0, :2] = torch.tensor([torch.inf, -torch.inf])
    codes, scales = check(glue_emulation, op, [x])
    assert codes[0, 0, 0] == 0xF7
    assert scales[0, 0].float().tolist()[0] == 448


def test_every_number_makes_the_scale_of_its_sixth(glue_emulation: ctypes.CDLL) -> None:
    largest = every_bf16()
    x = functional.pad(largest[:, None], (0, 15)).view(1, -1, 16)
    _, scales = check(glue_emulation, Quantize(x.shape[1], 16), [x])
    assert scales.view(torch.uint8).unique().numel() == 0x7F


@pytest.mark.parametrize("ulps", [-1, 0, 1])
def test_codes_without_the_instruction_are_those_of_the_quotient(
    glue_emulation: ctypes.CDLL, ulps: int
) -> None:
    x = torch.cat([every_bf16(), torch.tensor([torch.inf, -torch.inf]).bfloat16()])
    x = functional.pad(x, (0, -x.numel() % 4))
    found = torch.empty(x.numel() // 4, dtype=torch.int16)
    for scale in range(1, 0x7F):
        glue_emulation.fastwan_emulate_codes(
            ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(found.data_ptr()),
            ctypes.c_int64(found.numel()), ctypes.c_uint32(scale), ctypes.c_int(ulps),
        )  # fmt: skip
        value = torch.tensor(scale, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
        expected = nvfp4.pack_nibbles(nvfp4.round_to_e2m1(x.float() / value))
        assert torch.equal(found.view(torch.uint8), expected)


def test_every_number_has_the_code_of_its_quotient(glue_emulation: ctypes.CDLL) -> None:
    # A group for each scale and each 15 of the numbers that its codes tell apart; the largest of a
    # group makes its scale.
    steps = torch.arange(0x3D00, 0x40C0, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    steps = functional.pad(steps, (0, -steps.numel() % 15)).view(-1, 15)
    scales = torch.arange(1, 0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    exact = torch.cat([steps.float(), torch.full((len(steps), 1), 6.0)], -1) * scales[:, None, None]
    for sign in (1, -1):
        x = (sign * exact).clamp(-6 * 448, 6 * 448).bfloat16().view(1, -1, 16)
        op = Quantize(x.shape[1], 16)
        _, found = check(glue_emulation, op, [x])
        assert found.view(torch.uint8).unique().numel() > 100


NORMS = [op for op in BOUNDARIES if type(op) is ResidualNormQuantize]
SIBLINGS = [op for op in BOUNDARIES if isinstance(op, NormQuantize | ResidualNorm)]


@pytest.mark.parametrize("op", NORMS, ids=str)
def test_the_norm_writes_the_bytes_of_the_reference(
    glue_emulation: ctypes.CDLL, op: ResidualNormQuantize
) -> None:
    _, codes, _ = check(glue_emulation, op, glue_inputs(op))
    assert codes.unique().numel() > 16


@pytest.mark.parametrize("op", SIBLINGS, ids=lambda op: f"{op.op} of {op.rows} x {op.columns}")
def test_a_norm_without_residual_or_quantiser_writes_the_bytes_of_the_reference(
    glue_emulation: ctypes.CDLL, op: GlueOp
) -> None:
    first, *_ = check(glue_emulation, op, glue_inputs(op))
    assert first.view(torch.uint8).unique().numel() > 16


@pytest.mark.parametrize("factor", factors_of(NORMS[0]))
def test_the_norm_of_small_and_large_values(glue_emulation: ctypes.CDLL, factor: float) -> None:
    for op in (*NORMS[:3], *SIBLINGS):
        moved = 1 if isinstance(op, NormQuantize) else 3
        inputs = [x.double().mul(factor).to(x.dtype) for x in glue_inputs(op)[:moved]]
        check(glue_emulation, op, [*inputs, *glue_inputs(op)[moved:]])


def test_the_norm_is_that_of_the_exported_block(glue_emulation: ctypes.CDLL) -> None:
    op = ResidualNormQuantize(40, 1536, NormAttributes(1e-6, add_one=True), gated=True)
    y, bias, hidden, gate, scale, shift = glue_inputs(op)
    found, *quantized = emulate(glue_emulation, op, [y, bias, hidden, gate, scale, shift])
    expected = hidden + ((y + bias).float() * gate).to(torch.bfloat16)
    assert torch.equal(found, expected)
    norm = (layer_norm(expected, 1e-6) * (1 + scale) + shift).to(torch.bfloat16)
    # Only the order of the sums differs: a rounding here and there.
    assert difference(op, quantized, nvfp4.quantize_activation(norm)) < quantized[0].numel() / 1000


CROSS = [op for op in BOUNDARIES if isinstance(op, CrossAttention)]


@pytest.mark.parametrize("op", CROSS, ids=str)
def test_the_cross_attention_writes_what_the_reference_does(
    glue_emulation: ctypes.CDLL, op: CrossAttention
) -> None:
    codes, _ = check(glue_emulation, op, glue_inputs(op))
    assert codes.unique().numel() > 16


SCALED = [op for op in BOUNDARIES if isinstance(op, ScalableOp) and op.scaled]


@pytest.mark.parametrize("op", SCALED, ids=str)
@pytest.mark.parametrize("factor", [1.0, 3e-3, 0.123456789])
def test_a_factor_of_the_product_is_rounded_before_all_else(
    glue_emulation: ctypes.CDLL, op: ScalableOp, factor: float
) -> None:
    y, *others, _ = glue_inputs(op)
    y = (y.float() / factor).to(y.dtype)
    found = check(glue_emulation, op, [y, *others, torch.tensor(factor)])
    plain, product = dataclasses.replace(op, scaled=False), (y.float() * factor).to(y.dtype)
    assert difference(op, found, emulate(glue_emulation, plain, [product, *others])) == 0
    same = difference(op, found, emulate(glue_emulation, plain, [y, *others])) == 0
    assert same is (factor == 1.0)


@pytest.mark.parametrize("factor", factors_of(CROSS[1]))
def test_the_cross_attention_of_small_and_large_queries(
    glue_emulation: ctypes.CDLL, factor: float
) -> None:
    op = CROSS[1]
    y, bias, *rest = glue_inputs(op)
    inputs = [(x.double() * factor).clamp(-1.5e38, 1.5e38).bfloat16() for x in (y, bias)]
    check(glue_emulation, op, [*inputs, *rest])


def test_keys_that_are_masked_in_front_have_no_weight(glue_emulation: ctypes.CDLL) -> None:
    op = CROSS[1]
    y, bias, weight, k, v, key_bias, key_tiles = glue_inputs(op)
    key_bias[:70] = -torch.inf  # a whole tile, and a part of the next one
    inputs = [y, bias, weight, k, v, key_bias, key_tiles]
    check(glue_emulation, op, inputs)
    one = torch.ones_like(key_tiles)
    few = [y, bias, weight, k[:, 64:128], v[:, :, 64:128], key_bias[64:128], one]
    assert torch.equal(cross_out(inputs, op, exact=False), cross_out(few, op, exact=False))


@pytest.mark.parametrize(("asked", "read"), [(-1, 1), (0, 1), (1, 1), (2, 2), (3, 3), (99, 3)])
def test_tiles_that_there_are_not_are_not_read(
    glue_emulation: ctypes.CDLL, asked: int, read: int
) -> None:
    op = CROSS[1]
    inputs = [x.nan_to_num(0.5) for x in glue_inputs(op)[:5]]
    inputs += [torch.zeros(op.keys), torch.tensor([asked], dtype=torch.int32)]
    found = check(glue_emulation, op, inputs)
    inputs[6] = torch.tensor([read], dtype=torch.int32)
    assert difference(op, found, emulate(glue_emulation, op, inputs)) == 0


def cross_out(inputs: Sequence[Tensor], op: CrossAttention, *, exact: bool) -> Tensor:
    attributes = dataclasses.asdict(op.attributes)
    return glue_reference.attention_to_keys(*inputs, **attributes, exact=exact).float()


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_the_cross_attention_is_within_bf16_of_an_exact_one() -> None:
    for op in CROSS:
        inputs = glue_inputs(op)[:7]
        assert relative(*(cross_out(inputs, op, exact=exact) for exact in (False, True))) < 4e-3


@pytest.mark.parametrize("tokens", [1, 63, 64, 200, 511])
def test_few_keys_stand_for_512(glue_emulation: ctypes.CDLL, tokens: int) -> None:
    op = CrossAttention(17, 256, 512, CROSS[1].attributes)
    *first, k, v, _, _ = (x.nan_to_num(0.5) for x in glue_inputs(op))
    # What stands behind the prompt are rows of zeros in the text, so their keys are all equal.
    k[:, tokens:], v[:, :, tokens:] = k[:, tokens, None], v[:, :, tokens, None]
    every = [*first, k, v, torch.zeros(512), torch.tensor([8], dtype=torch.int32)]
    key_bias = torch.full((512,), -torch.inf)
    key_bias[:tokens] = 0.0
    key_bias[tokens] = math.log(512 - tokens)
    few = [*first, k, v, key_bias, torch.tensor([tokens // 64 + 1], dtype=torch.int32)]
    check(glue_emulation, op, few)
    check(glue_emulation, op, every)
    # A last bit of bf16 here and there.
    assert relative(*(cross_out(inputs, op, exact=True) for inputs in (few, every))) < 5e-4
    assert relative(cross_out(few, op, exact=False), cross_out(every, op, exact=True)) < 4e-3


def test_the_cross_attention_is_that_of_the_exported_block() -> None:
    op = CrossAttention(40, 1536, 64, CrossAttributes(12, 1e-6, 128**-0.5))
    y, bias, weight, k, v, key_bias, key_tiles = glue_inputs(op)
    q = rms_norm(y + bias, weight, 1e-6).unflatten(-1, (12, 128)).transpose(1, 2).float()
    keys = k.unflatten(-1, (12, 128)).transpose(1, 2).float()
    expected = functional.scaled_dot_product_attention(q, keys, v.float())
    inputs = [y, bias, weight, k, v, torch.zeros_like(key_bias), key_tiles]
    found = cross_out(inputs, op, exact=False)
    assert relative(found, expected.transpose(1, 2).flatten(2)) < 4e-3
