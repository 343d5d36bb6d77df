"""NVFP4 through ModelOpt, the recipe, the merged qkv weight and the torch operator."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from fastwan.export.dit_graph import targeted_linears
from fastwan.export.models.layers import Linear
from fastwan.export.quantize import convert_linear, quantize_linear
from fastwan.export.recipes import NVFP4
from fastwan.export.recipes.nvfp4_operator import nvfp4_linear
from fastwan.export.weight_groups import Fp32, weight_groups
from fastwan.export.weights import load_module, load_weights
from fastwan.plugins.nvfp4 import PackedWeight, dequantize_weight, quantize_weight

GLOBAL = 2.0**-10  # of a weight whose largest value is 2688 times it
E2M1_TIES = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]


def value_ties() -> torch.Tensor:
    """Values that lie on ties of e2m1 once they are divided by a block scale of 1, 2, 4 or 1/2."""
    row = torch.tensor([6.0, *E2M1_TIES, *(-tie for tie in E2M1_TIES), 0.0])
    return torch.cat([row * scale * GLOBAL for scale in (1, 2, 4, 0.5)])


def scale_ties() -> torch.Tensor:
    """Blocks whose scale lies between two neighbouring e4m3 numbers, subnormal ones included."""
    ties = [(16 + 2 * i + 1) / 16 * 2.0**e for i in range(8) for e in (-3, 0, 4)]
    ties += [(i + 0.5) * 2.0**-9 for i in range(8)]
    largest = torch.tensor(ties) * 6 * GLOBAL
    fraction = torch.linspace(-1, 1, 16)
    return (largest[:, None] * fraction).flatten()


def _weight(values: torch.Tensor) -> torch.Tensor:
    """`values` in rows of 64 under a largest value that makes the global scale `GLOBAL`."""
    first = torch.zeros(16)
    first[3] = 2688 * GLOBAL
    values = torch.cat([first, values])
    values = torch.cat([values, torch.zeros(-len(values) % 64)])
    return values.reshape(-1, 64).bfloat16()


def _random() -> torch.Tensor:
    return torch.randn(48, 128, generator=torch.Generator().manual_seed(0)) * 0.02


def _outliers() -> torch.Tensor:
    weight = _random()
    weight[7, 40] = -30.0
    weight[11] *= 1e-5
    return weight


def _zero_blocks() -> torch.Tensor:
    weight = _random()
    weight[5] = 0
    weight[9, 16:32] = -0.0
    return weight


WEIGHTS = {
    "random": _random().bfloat16(),
    "value ties": _weight(value_ties()),
    "scale ties": _weight(scale_ties()),
    "outliers": _outliers().bfloat16(),
    "zero blocks": _zero_blocks().bfloat16(),
    "all zero": torch.zeros(16, 32).bfloat16(),
}


def by_ml_dtypes(weight: torch.Tensor) -> tuple[bytes, bytes, np.float32]:
    """Packed bytes, scale bytes and global scale, from the formulas of NVFP4 alone."""
    blocks = weight.float().numpy().reshape(weight.shape[0], -1, 16)
    amax = np.abs(blocks).max(-1)
    total = np.float32(amax.max() / np.float32(2688)) or np.float32(1)
    scale = amax / (np.float32(6) * total)
    scale = np.where(scale == 0, np.float32(1), np.clip(scale, 2.0**-9, 448))
    rounded = scale.astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
    divisor = rounded.astype(np.float32)[..., None] * total
    codes = (blocks / divisor + np.float32(0)).astype(ml_dtypes.float4_e2m1fn)
    nibbles = codes.reshape(weight.shape[0], -1).view(np.uint8) & 15
    return (nibbles[:, 0::2] | nibbles[:, 1::2] << 4).tobytes(), rounded.tobytes(), total


def _bytes(packed: PackedWeight) -> tuple[bytes, bytes, np.float32]:
    scale = packed.block_scale.view(torch.uint8).numpy().tobytes()
    return packed.packed.numpy().tobytes(), scale, np.float32(packed.global_scale.item())


@pytest.mark.parametrize("name", WEIGHTS)
def test_three_quantisers_agree_to_the_byte(name: str) -> None:
    pytest.importorskip("modelopt", reason="nvidia-modelopt is not installed")
    weight = WEIGHTS[name]
    packed, activation = quantize_linear(weight.clone())
    assert activation == 1.0
    assert packed.packed.shape == (weight.shape[0], weight.shape[1] // 2)
    assert packed.block_scale.shape == (weight.shape[0], weight.shape[1] // 16)
    assert packed.global_scale.shape == ()
    assert _bytes(packed) == by_ml_dtypes(weight)
    assert _bytes(packed) == _bytes(quantize_weight(weight))
    assert torch.isfinite(dequantize_weight(packed)).all()


def test_the_ties_are_ties() -> None:
    """The two weights above really hit a tie of every kind, after bf16 and in fp32 arithmetic."""
    for name in ("value ties", "scale ties"):
        assert by_ml_dtypes(WEIGHTS[name])[2] == GLOBAL
    scaled = WEIGHTS["value ties"].float().reshape(-1, 16)[1:5] / GLOBAL
    scaled = scaled / torch.tensor([[1], [2], [4], [0.5]])
    assert {abs(v) for v in scaled.flatten().tolist()} == {0, 6, *E2M1_TIES}
    blocks = WEIGHTS["scale ties"].float().reshape(-1, 16)[1:33].abs().amax(-1)
    exact = (blocks / (6 * GLOBAL)).numpy()
    below = exact.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    codes = np.arange(0x7F, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    for value, rounded in zip(exact, below, strict=True):
        nearest = np.sort(np.abs(codes - value))[:2]
        assert nearest[0] == nearest[1] > 0
        assert abs(rounded - value) == nearest[0]


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.3])
def test_the_activation_scale_is_the_recipes(scale: float) -> None:
    pytest.importorskip("modelopt", reason="nvidia-modelopt is not installed")
    packed, activation = quantize_linear(WEIGHTS["random"].clone(), scale)
    assert activation == pytest.approx(scale, rel=1e-6)
    assert _bytes(packed) == _bytes(quantize_weight(WEIGHTS["random"]))
    assert _bytes(convert_linear(WEIGHTS["random"].clone(), scale)) == _bytes(packed)


def test_exactly_ten_linears_a_block_are_quantised(tiny: Any) -> None:
    quantised: list[torch.Tensor] = []

    class Counting(NVFP4):
        def reference(self, weight: torch.Tensor, dtype: torch.dtype) -> dict[str, torch.Tensor]:
            quantised.append(weight)
            return super().reference(weight, dtype)

    made = dict(load_weights(tiny.weights, tiny.config, Counting()))
    assert list(made) == weight_groups(tiny.config)
    fp4 = {group.name for group, tensors in made.items() if f"{group.name}.weight_scale" in tensors}
    linears = targeted_linears(tiny.config, NVFP4())
    assert fp4 == {linear.name for linear in linears}
    sources = [source for linear in linears for source in linear.sources]
    names = ["ffn.net.0.proj", "ffn.net.2"]
    names += [f"attn{i}.to_{part}" for i in (1, 2) for part in ("q", "k", "v", "out.0")]
    expected = [f"blocks.{i}.{name}" for i in range(tiny.config.num_layers) for name in names]
    assert sorted(sources) == sorted(expected)
    assert len(expected) == 10 * tiny.config.num_layers == len(quantised)
    dtypes = Counter(
        tensor.dtype for group, made_ in made.items() if group.name not in fp4
        for tensor in made_.values()
    )  # fmt: skip
    assert set(dtypes) == {torch.bfloat16, torch.float32}
    for group, tensors in made.items():
        if isinstance(group, Fp32):
            assert all(tensor.dtype == torch.float32 for tensor in tensors.values())


def test_every_checkpoint_tensor_is_used_once(tiny: Any) -> None:
    used: list[str] = []

    class Counting:
        def names(self) -> list[str]:
            return list(tiny.weights.names())

        def shape(self, name: str) -> tuple[int, ...]:
            return tuple(tiny.weights.shape(name))

        def read(self, name: str) -> torch.Tensor:
            used.append(name)
            tensor: torch.Tensor = tiny.weights.read(name)
            return tensor

    for _ in load_weights(Counting(), tiny.config, NVFP4()):
        pass
    assert sorted(used) == sorted(tiny.weights.names())


@pytest.mark.parametrize("workers", [2, 5, 200])
def test_workers_change_nothing(tiny: Any, workers: int) -> None:
    one = list(load_weights(tiny.weights, tiny.config, NVFP4()))
    many = list(load_weights(tiny.weights, tiny.config, NVFP4(), workers=workers))
    assert [group for group, _ in one] == [group for group, _ in many]
    for (_, expected), (_, tensors) in zip(one, many, strict=True):
        assert list(expected) == list(tensors)
        for name in expected:
            raw = [t[name].contiguous().reshape(-1).view(torch.uint8) for t in (expected, tensors)]
            assert torch.equal(raw[0], raw[1]), name


def test_merged_qkv_keeps_the_global_scale_of_each_third(tiny: Any, kit: SimpleNamespace) -> None:
    module = load_module(tiny.weights, tiny.config, tiny.shape, NVFP4(), torch.float32)
    attention: Any = module.blocks[0].attn1
    attention.qkv.quantize_activation = False
    x = torch.randn(5, tiny.config.width, generator=torch.Generator().manual_seed(3))
    thirds = attention.qkv(x).chunk(3, dim=-1)
    scales = []
    for index, part in enumerate("qkv"):
        weight = quantize_weight(tiny.weights.read(f"blocks.0.attn1.to_{part}.weight"))
        scales.append(float(weight.global_scale))
        separate = x.double() @ dequantize_weight(weight).double().t()
        assert kit.relative(thirds[index] * attention.qkv_scale[index], separate) < 1e-6
        bias = attention.qkv_bias.chunk(3)[index]
        assert torch.equal(bias, tiny.weights.read(f"blocks.0.attn1.to_{part}.bias").float())
    assert float(attention.qkv.weight_scale_2) == 1.0
    assert attention.qkv_scale.tolist() == scales
    assert len(set(scales)) == 3  # else a swap could not be seen


def _linear(bias: bool = True) -> tuple[Linear, PackedWeight, torch.Tensor]:
    weight = quantize_weight(WEIGHTS["random"])
    linear = Linear(128, 48, NVFP4(), torch.float32, bias=bias)
    shift = torch.linspace(-1, 1, 48)
    state = {"weight": weight.packed, "weight_scale": weight.block_scale}
    state["weight_scale_2"] = weight.global_scale
    linear.load_state_dict(state | ({"bias": shift} if bias else {}))
    return linear, weight, shift


def by_fp64(x: torch.Tensor) -> torch.Tensor:
    """The values of an NVFP4 activation with global scale 1.0, by ml_dtypes, in fp64."""
    blocks = x.float().numpy().reshape(*x.shape[:-1], -1, 16)
    scale = (np.abs(blocks).max(-1, keepdims=True) / np.float32(6)).clip(max=448)
    scale = scale.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    codes = (blocks / np.where(scale > 0, scale, np.inf)).astype(ml_dtypes.float4_e2m1fn)
    values = codes.astype(np.float64) * scale
    return torch.from_numpy(values.reshape(x.shape))


@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_is_what_fp64_computes(kit: SimpleNamespace, quantize: bool, bias: bool) -> None:
    linear, weight, shift = _linear(bias)
    linear.quantize_activation = quantize
    x = torch.randn(2, 7, 128, generator=torch.Generator().manual_seed(4))
    rows = by_fp64(x) if quantize else x.double()
    expected = rows @ dequantize_weight(weight).double().t() + (shift if bias else 0)
    y = linear(x)
    assert y.dtype == torch.float32
    assert kit.relative(y, expected) < 1e-6
    other = x.double() if quantize else by_fp64(x)
    assert kit.relative(other @ dequantize_weight(weight).double().t(), y) > 1e-3


def test_operator_rounds_once_to_the_dtype_of_its_input() -> None:
    weight = quantize_weight(WEIGHTS["random"])
    x = torch.randn(9, 128, generator=torch.Generator().manual_seed(5)).bfloat16()
    y = nvfp4_linear(x, *weight, True)
    wide = nvfp4_linear(x.float(), *weight, True)
    assert torch.equal(y, wide.bfloat16())
    assert not torch.equal(y.float(), wide)
