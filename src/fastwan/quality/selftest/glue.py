"""The glue between GEMMs: random inputs of each kind of node, and what its kernel has to write."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from fastwan.errors import BadInput
from fastwan.plugins import glue_reference as reference
from fastwan.plugins.nvfp4 import BLOCK, decode_e2m1, unpack_nibbles
from fastwan.plugins.regions.base import dims
from fastwan.plugins.regions.cross_attention import KEY_TILE, CrossAttention, CrossTensors
from fastwan.plugins.regions.gelu_quantize import GeluQuantize
from fastwan.plugins.regions.glue import GlueOp
from fastwan.plugins.regions.quantize import Quantize
from fastwan.plugins.regions.residual_norm_quantize import NormTensors, ResidualNormQuantize

CROSS_LIMIT = 0.01
"""Of the cross-attention: now and then another order of fp32 sums moves a value over a tie."""


def glue_inputs(op: GlueOp, device: str = "cpu", seed: int = 0) -> list[Tensor]:
    """Random inputs of a node, in its order."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(shape: Sequence[int]) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    if isinstance(op, CrossAttention):
        return [*_few_keys(op, max(1, op.keys // 2 - 9), normal, device)]
    return [normal(dims(spec)).to(getattr(torch, spec.dtype)) for spec in op.inputs]


def _few_keys(
    op: CrossAttention, tokens: int, normal: Callable[[Sequence[int]], Tensor], device: str
) -> CrossTensors[Tensor]:
    """Inputs with `tokens` keys, one that stands for 5 more, and NaN behind the last tile read."""
    y, bias, weight, k, v, key_bias, _ = (normal(dims(spec)) for spec in op.inputs)
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


def reference_of(op: GlueOp) -> Callable[..., tuple[Tensor, ...]]:
    """What a node computes, in torch: a function of its inputs to its outputs.

    Raises:
        BadInput: a kind that has no reference.
    """
    if isinstance(op, GeluQuantize):
        return reference.gelu_quantize
    if isinstance(op, Quantize):
        return reference.quantize
    if isinstance(op, CrossAttention):
        return partial(reference.cross_attention, **dataclasses.asdict(op.attributes))
    if isinstance(op, ResidualNormQuantize):
        attributes = op.attributes

        def norm(*tensors: Tensor) -> tuple[Tensor, ...]:
            first, rest = tensors[:3], tensors[3:]
            given = NormTensors(*first, *((None,) if len(rest) == 2 else ()), *rest)
            return reference.residual_norm_quantize(
                *given, eps=attributes.eps, add_one=attributes.add_one
            )

        return norm
    raise BadInput(f"no reference of {op}", where=op.op)


def difference(op: GlueOp, found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """How far a node's outputs are from the reference: to be held to `limit_of`.

    Returns:
        bytes that differ; of a cross-attention the relative L2 of what the next GEMM sees.
    """
    if isinstance(op, CrossAttention):
        a, b = (dequantized(*pair) for pair in (found, expected))
        return float((a - b).norm() / b.norm())
    pairs = zip(found, expected, strict=True)
    return sum(int((a.view(torch.uint8) != b.view(torch.uint8)).sum()) for a, b in pairs)


def limit_of(op: GlueOp) -> float:
    """Largest `difference` of a kernel that works: 0 where it is exact."""
    return CROSS_LIMIT if isinstance(op, CrossAttention) else 0.0


def dequantized(codes: Tensor, scales: Tensor) -> Tensor:
    """Values of an FP4 operand [.., C] fp32."""
    blocks = decode_e2m1(unpack_nibbles(codes)).unflatten(-1, (-1, BLOCK))
    values: Tensor = blocks * scales.float().unsqueeze(-1)
    return values.flatten(-2)
