"""e2m1, e4m3 and the two quantisers against ml_dtypes, ModelOpt and numpy."""

from __future__ import annotations

import warnings

import ml_dtypes
import numpy as np
import pytest
import torch

from fastwan.errors import BadInput
from fastwan.plugins import nvfp4

ALL_BF16 = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)


def neighbours(values: list[float]) -> torch.Tensor:
    """Each value, the fp32 below and the fp32 above it, with both signs."""
    exact = np.array(values, dtype=np.float32)
    around = [exact, np.nextafter(exact, np.float32(0)), np.nextafter(exact, np.float32(1e9))]
    return torch.from_numpy(np.concatenate([*around, *(-part for part in around)]))


@pytest.mark.parametrize(
    "x",
    [
        pytest.param(ALL_BF16[ALL_BF16.isfinite()].float(), id="all bf16"),
        pytest.param(neighbours([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0]), id="ties"),
        pytest.param(torch.tensor([0.0, -0.0, 1e-45, -1e-45, 1e38, -1e38]), id="extremes"),
    ],
)
def test_e2m1_codes_are_those_of_ml_dtypes(x: torch.Tensor) -> None:
    expected = x.numpy().astype(ml_dtypes.float4_e2m1fn).view(np.uint8) & 15
    codes = nvfp4.round_to_e2m1(x)
    assert np.array_equal(codes.numpy(), expected)
    values = nvfp4.round_to_e2m1_values(x)
    assert torch.equal(values, nvfp4.decode_e2m1(codes))
    assert torch.equal(torch.signbit(values), torch.signbit(x))


def test_e2m1_of_infinity_and_nan_saturates() -> None:
    x = torch.tensor([float("inf"), float("-inf"), float("nan")])
    assert nvfp4.round_to_e2m1(x).tolist() == [7, 15, 7]


def test_e2m1_is_the_same_in_chunks_and_at_once() -> None:
    x = torch.randn(3, 50_000, generator=torch.Generator().manual_seed(0)) * 3
    whole = nvfp4.round_to_e2m1(x)
    parts = torch.stack([nvfp4.round_to_e2m1(row) for row in x])
    assert torch.equal(whole, parts)


def test_decode_e2m1_gives_the_sixteen_values() -> None:
    values = nvfp4.decode_e2m1(torch.arange(16, dtype=torch.uint8))
    expected = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert np.array_equal(values.numpy(), expected)


@pytest.mark.parametrize("kind", ["all bf16", "midpoints", "subnormal midpoints", "saturation"])
def test_e4m3_codes_are_those_of_ml_dtypes(kind: str) -> None:
    codes = np.arange(0x7F, dtype=np.uint8)
    values = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    midpoints = (values[1:] + values[:-1]) / 2
    x = {
        "all bf16": ALL_BF16[ALL_BF16.isfinite()].float(),
        "midpoints": neighbours(midpoints[8:].tolist()),
        "subnormal midpoints": neighbours(midpoints[:8].tolist()),
        "saturation": neighbours([448.0, 456.0, 464.0, 465.0, 1e6]),
    }[kind]
    clamped = np.clip(x.numpy(), -448, 448)  # ml_dtypes makes NaN where hardware saturates
    expected = clamped.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    assert np.array_equal(nvfp4.round_to_e4m3(x).view(torch.uint8).numpy(), expected)


def test_e4m3_keeps_nan_and_saturates_infinity() -> None:
    codes = nvfp4.round_to_e4m3(torch.tensor([float("nan"), float("inf")])).view(torch.uint8)
    assert (codes & 0x7F).tolist() == [0x7F, 0x7E]


def test_the_even_element_is_the_low_nibble() -> None:
    codes = torch.tensor([[1, 2, 15, 0]], dtype=torch.uint8)
    packed = nvfp4.pack_nibbles(codes)
    assert packed.tolist() == [[0x21, 0x0F]]
    assert torch.equal(nvfp4.unpack_nibbles(packed), codes)


def test_an_odd_number_of_codes_is_refused() -> None:
    with pytest.raises(BadInput, match="odd number"):
        nvfp4.pack_nibbles(torch.zeros(1, 3, dtype=torch.uint8))


def awkward_weight(dtype: torch.dtype) -> torch.Tensor:
    """Random rows beside blocks of zeros, -0, one huge value and values far below the rest."""
    weight = torch.randn(40, 64, generator=torch.Generator().manual_seed(1)) * 0.02
    weight[3] = 0
    weight[5, ::3] = -0.0
    weight[7] *= 1e-6
    weight[9, 17] = 3.0
    weight[11] = torch.arange(64) / 64 * 0.03  # many values on rounding ties
    return weight.to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weight_bytes_are_those_of_modelopt(dtype: torch.dtype) -> None:
    pytest.importorskip("modelopt", reason="nvidia-modelopt is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from modelopt.torch.quantization.qtensor import NVFP4QTensor
    weight = awkward_weight(dtype)
    theirs, block_scale, global_scale = NVFP4QTensor.quantize(weight.clone(), 16)
    ours = nvfp4.quantize_weight(weight)
    assert torch.equal(ours.packed, theirs._quantized_data)
    assert torch.equal(ours.block_scale.view(torch.uint8), block_scale.view(torch.uint8))
    assert torch.equal(ours.global_scale, global_scale)
    dequantised = theirs.dequantize(
        torch.float32, scale=block_scale, double_scale=global_scale, block_sizes={-1: 16}
    )
    assert torch.equal(nvfp4.dequantize_weight(ours), dequantised)


def test_weight_is_what_numpy_computes() -> None:
    weight = awkward_weight(torch.float32)
    x = weight.numpy().reshape(40, 4, 16)
    global_scale = np.float32(np.abs(x).max() / np.float32(6 * 448))
    scale = np.abs(x).max(-1) / (np.float32(6) * global_scale)
    scale = np.where(scale == 0, np.float32(1), scale)
    scale = np.clip(scale, 2.0**-9, 448).astype(ml_dtypes.float8_e4m3fn)
    divisor = scale.astype(np.float32) * global_scale
    codes = (x / divisor[..., None] + np.float32(0)).astype(ml_dtypes.float4_e2m1fn)
    nibbles = (codes.view(np.uint8) & 15).reshape(40, 64)
    packed = nvfp4.quantize_weight(weight)
    assert np.array_equal(packed.block_scale.view(torch.uint8).numpy(), scale.view(np.uint8))
    assert np.array_equal(packed.packed.numpy(), nibbles[:, 0::2] | (nibbles[:, 1::2] << 4))


def test_rows_may_be_quantised_in_parts_under_one_global_scale() -> None:
    weight = awkward_weight(torch.bfloat16)
    whole = nvfp4.quantize_weight(weight)
    parts = [nvfp4.quantize_weight(part, whole.global_scale) for part in weight.split(13)]
    assert torch.equal(torch.cat([part.packed for part in parts]), whole.packed)
    scales = torch.cat([part.block_scale.view(torch.uint8) for part in parts])
    assert torch.equal(scales, whole.block_scale.view(torch.uint8))


def test_a_weight_of_zeros_stays_finite() -> None:
    packed = nvfp4.quantize_weight(torch.zeros(2, 32, dtype=torch.bfloat16))
    assert packed.global_scale.item() == 1.0
    assert torch.equal(nvfp4.dequantize_weight(packed), torch.zeros(2, 32))


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.full((2, 32), float("nan")), "not finite"),
        (torch.full((2, 32), float("inf")), "not finite"),
        (torch.ones(2, 24), "multiple of the NVFP4 block"),
        (torch.ones(32), "two axes"),
    ],
)
def test_a_weight_that_cannot_be_quantised_is_refused(weight: torch.Tensor, message: str) -> None:
    nvfp4.quantize_weight(torch.ones(2, 32))
    with pytest.raises(BadInput, match=message):
        nvfp4.quantize_weight(weight)


@pytest.mark.parametrize("global_scale", [1.0, 0.5])
def test_activation_is_divided_by_its_rounded_scale(global_scale: float) -> None:
    x = torch.randn(6, 3, 32, generator=torch.Generator().manual_seed(2)).bfloat16()
    x[0, 0] = 0
    x[0, 1] *= 1e-5  # the scale rounds to zero
    x[0, 2] *= 1e5  # the scale saturates
    blocks = x.float().numpy().reshape(6, 3, 2, 16)
    step = np.float32(global_scale)
    scale = (np.abs(blocks).max(-1) / np.float32(6) / step).clip(max=448)
    scale = scale.astype(ml_dtypes.float8_e4m3fn)
    divisor = scale.astype(np.float32)[..., None] * step
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.where(divisor > 0, blocks / divisor, np.float32(0))
    codes = (scaled.astype(ml_dtypes.float4_e2m1fn).view(np.uint8) & 15).reshape(6, 3, 32)
    packed, block_scale = nvfp4.quantize_activation(x, global_scale)
    assert np.array_equal(block_scale.view(torch.uint8).numpy(), scale.view(np.uint8))
    assert np.array_equal(nvfp4.unpack_nibbles(packed).numpy(), codes)
    fake = nvfp4.fake_quantize_activation(x, global_scale)
    values = nvfp4.decode_e2m1(torch.from_numpy(codes)).numpy().reshape(6, 3, 2, 16)
    assert np.array_equal(fake.numpy(), (values * divisor).reshape(6, 3, 32))
    assert torch.equal(fake[0, :2], torch.zeros(2, 32))
