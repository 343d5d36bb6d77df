"""Weights at the ends of their range: quantised as the reference does, or refused where read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastwan.errors import BadInput
from fastwan.export.cache import tensor_bytes
from fastwan.export.checkpoint.reader import open_checkpoint
from fastwan.export.checkpoint.store import open_store
from fastwan.plugins.nvfp4 import dequantize_weight, quantize_weight

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
ENCODER = "text_encoder/model.safetensors"
DECODER = "taew2_1.safetensors"
BF16_MAX = torch.finfo(torch.bfloat16).max
Tensors = dict[str, torch.Tensor]
Edit = Callable[[Path, Callable[[Tensors], object]], None]


def one_value(name: str, value: float) -> Callable[[Tensors], object]:
    def change(tensors: Tensors) -> None:
        changed = tensors[name].float()
        changed.view(-1)[5] = value
        tensors[name] = changed

    return change


@pytest.mark.parametrize(
    ("file", "name", "holds", "beyond"),
    [
        (WEIGHTS, "blocks.0.attn1.to_q.weight", BF16_MAX, 3.4e38),
        (WEIGHTS, "blocks.1.scale_shift_table", -BF16_MAX, -3.4e38),
        (ENCODER, "shared.weight", BF16_MAX, -3.4e38),
        (DECODER, "decoder.1.weight", 65504.0, 65520.0),
        (DECODER, "decoder.1.bias", 65504.0, -1e30),
    ],
)
def test_a_value_beyond_the_format_it_is_used_in_is_refused(
    copy: Path, edit_tensors: Edit, file: str, name: str, holds: float, beyond: float
) -> None:
    part = {WEIGHTS: "transformer", ENCODER: "text_encoder", DECODER: "decoder"}[file]
    edit_tensors(copy / file, one_value(name, holds))
    store = getattr(open_checkpoint(copy), part)
    assert torch.isfinite(store.read(name)).all()
    edit_tensors(copy / file, one_value(name, beyond))
    store = getattr(open_checkpoint(copy), part)
    with pytest.raises(BadInput, match=rf"beyond (bfloat16|float16).*{name}"):
        store.read(name)


def test_rows_are_held_against_the_format_too(tmp_path: Path) -> None:
    table = torch.zeros(4, 8)
    table[2, 3] = 3.4e38
    save_file({"x": table}, tmp_path / "x.safetensors")
    store = open_store(tmp_path / "x.safetensors")
    assert store.read("x")[2, 3] > 3e38
    for same in (store.within(torch.bfloat16), store.within(torch.bfloat16).renamed(str)):
        same.read_rows("x", 0, 2)
        with pytest.raises(BadInput, match="beyond bfloat16"):
            same.read_rows("x", 2, 3)


PATTERNS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "plain": lambda w: w,
    "1e38": lambda w: w.sign() * 1e38,
    "largest": lambda w: w.sign() * BF16_MAX,
    "1e-38": lambda w: w * 1e-38,
    "denormal": lambda w: w * 1e-40,
    "smallest": lambda w: w.sign() * 9.2e-41,
    "zero": torch.zeros_like,
    "minus zero": lambda w: -torch.zeros_like(w),
    "one large": lambda w: torch.where(w == w.max(), torch.tensor(3e38), w * 1e-3),
    "one row large": lambda w: torch.cat([w[:1] * 1e37, w[1:]]),
    "both ends": lambda w: torch.where(w > 0, torch.tensor(3e38), torch.tensor(-1e-38)),
    "some rows zero": lambda w: torch.cat([w[:4] * 0, w[4:]]),
}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", [(16, 32), (256, 512)])
def test_extreme_weights_are_quantised_as_the_reference_does(
    pattern: str, shape: tuple[int, int]
) -> None:
    pytest.importorskip("modelopt", reason="nvidia-modelopt is not installed")
    from fastwan.export.recipes import NVFP4

    random = torch.randn(shape, generator=torch.Generator().manual_seed(3)).clamp(-3, 3)
    weight = PATTERNS[pattern](random).bfloat16()
    assert torch.isfinite(weight).all()
    made = NVFP4().stored(weight, torch.bfloat16, reference=False)
    reference = NVFP4().stored(weight, torch.bfloat16, reference=True)
    assert set(made) == set(reference)
    for name, expected in reference.items():
        assert made[name].dtype == expected.dtype
        assert bytes(tensor_bytes(made[name])) == bytes(tensor_bytes(expected)), name
    # And the reference is no further from the weight than its steps are coarse.
    packed = quantize_weight(weight)
    assert torch.isfinite(packed.global_scale)
    assert packed.global_scale > 0
    error = (dequantize_weight(packed).double() - weight.double()).abs()
    assert error.max() <= weight.double().abs().max() / 6
