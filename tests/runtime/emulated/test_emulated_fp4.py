"""The operands of an emulated FP4 GEMM are what plugins/nvfp4.py says, bit for bit."""

from __future__ import annotations

import pytest
import torch

from fastwan.plugins import nvfp4
from fastwan.runtime.emulated import fp4


def reference(x: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes times block scales and the block scales, fp32."""
    packed, blocks = nvfp4.quantize_activation(x, scale)
    codes = nvfp4.decode_e2m1(nvfp4.unpack_nibbles(packed))
    grouped = codes.view(*blocks.shape, nvfp4.BLOCK) * blocks.float()[..., None]
    return grouped.flatten(-2), blocks.float()


@pytest.mark.parametrize("scale", [1.0, 0.0123, 37.0])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 300.0])
def test_a_quantised_activation_is_the_references(scale: float, spread: float) -> None:
    generator = torch.Generator().manual_seed(3)
    x = (torch.randn(2, 5000, 64, generator=generator) * spread).bfloat16()
    x[0, 0] = 0
    x[0, 1, :16] = 2.0**-20
    codes, blocks = fp4.quantize(x, scale)
    products, scales = reference(x, scale)
    assert torch.equal(codes.products.float(), products)
    assert torch.equal(blocks, scales)
    # Scales of 0 among them where the values are small for the scale of the whole.
    assert products.any() or spread < scale / 100


def test_the_operand_of_a_weight_is_exact_whatever_its_codes_and_scales() -> None:
    codes = torch.arange(16, dtype=torch.uint8).repeat(254, 1)
    scales = torch.arange(1, 0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    blocks = torch.cat([scales, -scales, torch.zeros(2)])[:254, None]
    got = fp4.products(nvfp4.pack_nibbles(codes), blocks)
    exact = nvfp4.decode_e2m1(codes).double() * blocks.double()
    assert torch.equal(got.double(), exact)
    assert len(got.unique()) > 300


def test_a_product_is_rounded_once_with_the_scales_of_both() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 40, 64, generator=generator).bfloat16()
    weight = nvfp4.quantize_weight(torch.randn(48, 64, generator=generator))
    codes, _ = fp4.quantize(x, 0.5)
    left = fp4.Operand(codes.products, 0.5)
    scale = float(weight.global_scale)
    right = fp4.products(weight.packed, weight.block_scale.float())
    got = fp4.multiply(left, fp4.Operand(right.t(), scale))
    a = nvfp4.fake_quantize_activation(x, 0.5).double()
    exact = a @ nvfp4.dequantize_weight(weight).double().t()
    assert got.shape == (3, 40, 48)
    assert got.dtype is torch.bfloat16
    # Half a unit in the last place of bf16, and what fp32 sums add to it.
    assert ((got.double() - exact).abs() <= exact.abs() * 2.0**-8 + 1e-4).all()
    # Dequantised to bf16 first, as a graph without FP4 units has it, operands are rounded too.
    rounded = (a.bfloat16() @ nvfp4.dequantize_weight(weight).bfloat16().t()).double()
    assert (rounded - exact).norm() > 1.2 * (got.double() - exact).norm()


def test_the_values_of_an_operand_are_those_of_dequantizelinear() -> None:
    x = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    codes, _ = fp4.quantize(x, 0.25)
    operand = fp4.Operand(codes.products, 0.25)
    assert torch.equal(operand.values(), nvfp4.fake_quantize_activation(x, 0.25))


def test_codes_that_an_engine_is_given_are_the_operand_that_it_would_have_made() -> None:
    generator = torch.Generator().manual_seed(1)
    x = (torch.randn(1, 4100, 48, generator=generator) * 7).bfloat16()
    packed, blocks = nvfp4.quantize_activation(x)
    given = fp4.products(packed, blocks.float())
    own, scales = fp4.quantize(x, 1.0)
    assert given.shape == x.shape
    assert torch.equal(given, own.products)
    assert torch.equal(scales, blocks.float())
    swapped = fp4.products((packed << 4) | (packed >> 4), blocks.float())
    assert not torch.equal(given, swapped)


@pytest.mark.parametrize("rows", [3, 5000])
def test_codes_are_packed_as_a_kernel_writes_them(rows: int) -> None:
    x = torch.randn(1, rows, 64, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    x[:, 1, :16] = 0
    x[:, 2, 16:20] = -0.0
    codes, scales = nvfp4.quantize_activation(x)
    made, blocks = fp4.quantize(x, 1.0)
    assert torch.equal(made.packed(), codes)
    assert torch.equal(blocks.to(torch.float8_e4m3fn).view(torch.uint8), scales.view(torch.uint8))
    assert len(codes.unique()) > 30
