"""The pieces a Wan transformer is made of: rotary tables, norms, linears."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastwan.config import VideoShape
from fastwan.export.recipes import Recipe

ROPE_THETA = 10000.0


def rope_tables(shape: VideoShape, head_dim: int = 128) -> tuple[Tensor, Tensor]:
    """Rotary tables over the (frame, row, column) patch grid, computed in fp64.

    Of the ``head_dim/2`` frequencies a third each (rounded down) goes to rows and columns, the
    rest to frames. Rows past the last token are cos 1, sin 0.

    Returns:
        cos and sin, [padded_tokens, head_dim / 2] fp32.
    """
    spatial = 2 * (head_dim // 6)
    angles = []
    grid = shape.patches
    for axis, dim in enumerate((head_dim - 2 * spatial, spatial, spatial)):
        frequency = ROPE_THETA ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        angle = torch.outer(torch.arange(grid[axis], dtype=torch.float64), frequency)
        view = [1, 1, 1, dim // 2]
        view[axis] = grid[axis]
        angles.append(angle.view(view).expand(*grid, dim // 2))
    table = torch.cat(angles, dim=-1).reshape(shape.num_tokens, head_dim // 2)
    table = F.pad(table, (0, 0, 0, shape.padded_tokens - shape.num_tokens))
    return table.cos().float(), table.sin().float()


def timestep_frequencies(freq_dim: int) -> Tensor:
    """Frequencies of the sinusoidal timestep embedding, [freq_dim / 2] fp32.

    A timestep of 999 multiplies them, so one unit in the last place is 6e-5 in the angle: they are
    a weight of the graph rather than something each runtime computes its own way. The exponents
    are those of diffusers, fp32; their powers are rounded from fp64, because an fp32 `exp` differs
    in its last bit from one CPU to the next, and a bundle is verified where it was not built.
    """
    half = freq_dim // 2
    exponents = -math.log(10000.0) * torch.arange(half, dtype=torch.float32) / half
    return torch.exp(exponents.double()).float()


def layer_norm(x: Tensor, eps: float) -> Tensor:
    """Layer norm without weights over the last axis, in fp32; returns fp32."""
    x = x.float()
    centred = x - x.mean(-1, keepdim=True)
    return centred * torch.rsqrt((centred * centred).mean(-1, keepdim=True) + eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm over the last axis: normalised in fp32, rounded, then weighted (as FastVideo)."""
    # Each use converts for itself: where the norm is split into two kernels, the builder then
    # stores the bf16 value between them and not an fp32 copy of twice its size.
    squares = x.float() * x.float()
    scale = torch.rsqrt(squares.mean(-1, keepdim=True) + eps)
    return (x.float() * scale).to(x.dtype) * weight


class Linear(nn.Module):
    """A targeted linear: weight [N, K] as its recipe stores it, bias added afterwards.

    Attributes:
        quantize_activation: numerics of the model when true; `verify` also runs it false.
        tokens: rows of the input that are no padding; None where all are.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        recipe: Recipe,
        dtype: torch.dtype,
        bias: bool = True,
        tokens: int | None = None,
    ) -> None:
        super().__init__()
        self.recipe, self.tokens = recipe, tokens
        self.quantize_activation = True
        buffers = recipe.buffers(inputs, outputs, dtype)
        self._stored = tuple(buffers)
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)
        if bias:
            self.register_buffer("bias", torch.empty(outputs, dtype=dtype))
        else:
            self.bias = None

    def forward(self, x: Tensor) -> Tensor:
        stored = {name: getattr(self, name) for name in self._stored}
        y = self.recipe.multiply(
            x, stored, quantize_activation=self.quantize_activation, tokens=self.tokens
        )
        return y if self.bias is None else y + self.bias


class Dense(nn.Module):
    """A linear that is never quantised: weight [N, K] and bias [N] in the model's dtype."""

    def __init__(self, inputs: int, outputs: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(outputs, inputs, dtype=dtype))
        self.register_buffer("bias", torch.empty(outputs, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(x, cast(Tensor, self.weight).t()) + cast(Tensor, self.bias)


class Norm(nn.Module):
    """Holder of a norm's parameters."""

    def __init__(self, width: int, dtype: torch.dtype, bias: bool = False) -> None:
        super().__init__()
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("weight", torch.empty(width, dtype=dtype))
        if bias:
            self.register_buffer("bias", torch.empty(width, dtype=dtype))
