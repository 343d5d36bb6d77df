"""The glue between GEMMs: random inputs of each kind of node, and what its kernel has to write."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastwan.plugins.regions.base import dims
from fastwan.plugins.regions.cross_attention import KEY_TILE, CrossAttention, CrossTensors
from fastwan.plugins.regions.glue import GlueOp


def glue_inputs(op: GlueOp, device: str = "cpu", seed: int = 0) -> list[Tensor]:
    """Random inputs of a node, in its order."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), generator=generator, device=device)

    if isinstance(op, CrossAttention):
        factor = [normal(())] if op.scaled else []
        return [*_few_keys(op, max(1, op.keys // 2 - 9), normal, device), *factor]
    return [normal(dims(spec)).to(getattr(torch, spec.dtype)) for spec in op.inputs]


def _few_keys(
    op: CrossAttention, tokens: int, normal: Callable[[Sequence[int]], Tensor], device: str
) -> CrossTensors[Tensor]:
    """Inputs with `tokens` keys, one that stands for 5 more, and NaN behind the last tile read."""
    y, bias, weight, k, v, key_bias, _ = (normal(dims(spec)) for spec in op.tensors)
    used = min(tokens + 1, op.keys)
    tiles = -(-used // KEY_TILE)
    key_bias[:] = -torch.inf
    key_bias[:used] = 0.0
    key_bias[used - 1] = math.log(5)
    k[:, tiles * KEY_TILE :] = v[:, :, tiles * KEY_TILE :] = torch.nan
    return CrossTensors(
        y=y.bfloat16(),
        bias=bias.bfloat16(),
        norm_weight=(weight * 0.2 + 1).bfloat16(),
        k=k.bfloat16(),
        v=v.bfloat16(),
        key_bias=key_bias,
        key_tiles=torch.tensor([tiles], dtype=torch.int32, device=device),
    )


def glue_outputs(op: GlueOp, device: str = "cpu") -> list[Tensor]:
    """Memory for a node's outputs, in its order; every byte is 0xA5."""
    outputs = []
    for spec in op.outputs:
        dtype = getattr(torch, spec.dtype)
        size = torch.Size(dims(spec)).numel() * dtype.itemsize
        garbage = torch.full((size,), 0xA5, dtype=torch.uint8, device=device)
        outputs.append(garbage.view(dtype).view(dims(spec)))
    return outputs
