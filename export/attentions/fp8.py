"""Attention ``fp8``: e4m3 operands in one fused kernel of the builder, on any GPU that has FP8.

The builder fuses MatMul, Mul, Softmax, MatMul into an attention with FP8 operands where q, k, v and
the probabilities pass nodes with constant scales, 1 for the first three and 1/448 for the last, and
nothing between the MatMuls is fp32. ONNX ``Attention`` with the same nodes before it loses FP8.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fastwan.config import KEY_SAMPLE
from fastwan.export import fp8
from fastwan.export.attentions.base import Attention, AttentionKernel, Division, Form
from fastwan.export.attentions.native import divide_blocks
from fastwan.export.recipes.fp8 import FP8_WORDS

if TYPE_CHECKING:
    import onnx_ir as ir


def head_scale(norm: Tensor, heads: int, factor: float) -> Tensor:
    """Scale of a head's queries or keys that no input can saturate, [1, H, 1, 1] fp32.

    An RMS norm over C channels leaves none above ``sqrt(C)``, RoPE turns pairs and so grows a value
    by at most ``sqrt(2)``, and the norm's weights are constant: no pass over the activation is
    needed. e4m3 keeps its relative precision over 15 binades below the bound. The scale is a power
    of two, so that the factor behind the product is exact in bf16.

    Args:
        norm: [C] weights of the RMS norm.
        factor: what else multiplies the values before they are rounded.
    """
    largest = norm.float().abs().reshape(heads, -1).amax(1).reshape(1, heads, 1, 1)
    bound = largest * (factor * (2 * norm.shape[0]) ** 0.5 / fp8.E4M3_MAX)
    return torch.exp2(torch.ceil(torch.log2(torch.clamp(bound, min=fp8.SMALLEST_SCALE))))


def _fp8(
    qkv: Tensor,
    qkv_scale: Tensor,
    qkv_bias: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    rope_cos: Tensor,
    rope_sin: Tensor,
    *,
    num_heads: int,
    num_tokens: int,
    eps: float,
    softmax_scale: float,
    exact_max: bool = False,
) -> Tensor:
    """q and k with a scale a head, k less a mean of its tokens, v with a scale a head.

    The softmax's own scale goes into q before it is rounded. k less any vector leaves the softmax
    as it is; the mean of every `KEY_SAMPLE`-th token takes off what all keys share.
    """
    length, channels, dtype = qkv.shape[1], qkv.shape[2] // 3, qkv.dtype
    heads = (length, 3, num_heads, channels // num_heads)
    tokens, factor = num_tokens, qkv_scale.reshape(3, 1, 1)
    bias = qkv_bias.reshape(heads[1:])
    weights = torch.stack([q_norm, k_norm]).reshape(2, *heads[2:])

    def rotated(x: Tensor, scale: Tensor, weight: Tensor, rows: slice) -> Tensor:
        x = (x.float() * scale).to(dtype) * weight
        cos, sin = (
            table[rows].reshape(-1, *([1] * (x.dim() - 2)), table.shape[1])
            for table in (rope_cos, rope_sin)
        )
        even, odd = x.reshape(*x.shape[:-1], -1, 2).float().unbind(-1)
        pairs = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
        return pairs.reshape(x.shape).to(dtype)

    # One pass over all rows leaves sums of squares, one over the tokens writes all operands.
    x = (qkv.reshape(heads).float() * factor).to(dtype) + bias
    squares = (x.float() * x.float()).mean(-1, keepdim=True)
    scale = torch.rsqrt(squares[:, :2].mean(2, keepdim=True) + eps)
    sampled = slice(0, tokens, KEY_SAMPLE)
    keys = rotated(x[sampled, 1], scale[sampled, 1], weights[1], sampled)
    mean = keys.float().mean(0, keepdim=True)
    # No value is larger than the head's values of a token together.
    v_scale = fp8.scale_of(torch.sqrt(squares[:tokens, 2].amax(0, keepdim=True) * heads[3]))
    q_scale = head_scale(q_norm, num_heads, softmax_scale)
    k_scale = head_scale(k_norm, num_heads, 2)  # a value and the mean are of one bound each

    x = (qkv.reshape(heads)[:tokens].float() * factor).to(dtype) + bias
    pair = rotated(x[:, :2], scale[:tokens], weights, slice(0, tokens))
    q = (pair[:, 0].float() * (softmax_scale / q_scale).reshape(1, num_heads, 1)).to(dtype)
    k = ((pair[:, 1].float() - mean) / k_scale.reshape(1, num_heads, 1)).to(dtype)
    v = fp8.scaled(x[:, 2], v_scale)
    q, k, v = (fp8.round_e4m3(each.transpose(0, 1), 1.0) for each in (q, k, v))
    scores = torch.matmul(q, k.transpose(1, 2)) * (q_scale * k_scale)[0].to(dtype)
    probabilities = fp8.round_e4m3(torch.softmax(scores, -1), 1 / fp8.E4M3_MAX)
    out = (torch.matmul(probabilities, v).float() * v_scale.reshape(num_heads, 1, 1)).to(dtype)
    out = out.transpose(0, 1).reshape(1, tokens, channels)
    return F.pad(out, (0, 0, 0, length - tokens))


FP8 = Form("fp8", _fp8)
_MARK = f"/{FP8.name}."


@dataclass(frozen=True)
class Fp8(Attention):
    """The node becomes standard operators, whatever the backend."""

    name: str = "fp8"
    uses_library = False
    wanted = "one kernel with FP8 operands"
    reference = FP8

    def divide(self, dit: ir.Model, *, plugins: bool) -> Division:
        return divide_blocks(dit, FP8)

    def faults(self, nodes: Iterable[str], kernels: Sequence[AttentionKernel]) -> list[str]:
        """An attention of the graph that is not one kernel with FP8 operands in an engine."""
        # What a pass adds to the graph has the attention's name behind another.
        names = (name.partition(_MARK)[0] for name in nodes if _MARK in name)
        wanted = dict.fromkeys(name for name in names if "/" not in name)
        found = []
        for attention in wanted:
            own = [k for k in kernels if any(n.startswith(attention + _MARK) for n in k.nodes)]
            fused = [kernel for kernel in own if kernel.kind == "attention"]
            if any(kernel.kind == "gemm" for kernel in own) or len(fused) != 1:
                found.append(f"{attention} is no fused kernel")
            elif not all(each.dtype in FP8_WORDS for each in fused[0].operands):
                found.append(f"{attention} multiplies {fused[0].precision}")
        return found
