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

from fastwan.export import fp8
from fastwan.export.attentions.base import Attention, AttentionKernel, Division, Form
from fastwan.export.attentions.heads import rotated_heads
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
    """q and k with a scale a head, k less its mean over the tokens, v with a scale a channel.

    The softmax's own scale goes into q before it is rounded. k less its mean leaves the softmax as
    it is, and takes off what all keys share.
    """
    batch, length, channels, dtype = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3, qkv.dtype
    q, k, _ = rotated_heads(
        qkv,
        qkv_scale,
        qkv_bias,
        q_norm,
        k_norm,
        rope_cos,
        rope_sin,
        num_heads=num_heads,
        num_tokens=num_tokens,
        eps=eps,
    )
    # v takes a path of its own: with q and k the builder would store all three in fp32.
    v = (qkv[:, :num_tokens, 2 * channels :].float() * qkv_scale[2]).to(dtype)
    v = (v + qkv_bias[2 * channels :]).reshape(batch, num_tokens, num_heads, -1).transpose(1, 2)
    q_scale = head_scale(q_norm, num_heads, softmax_scale)
    k_scale = head_scale(k_norm, num_heads, 2)  # a value and the mean are of one bound each
    v_scale = fp8.scale_of(v.abs().amax(2, keepdim=True))
    q = (q.float() * (softmax_scale / q_scale)).to(dtype)
    k = ((k.float() - k.float().mean(2, keepdim=True)) / k_scale).to(dtype)
    v = fp8.scaled(v, v_scale)
    q, k, v = (fp8.round_e4m3(each, 1.0) for each in (q, k, v))
    scores = torch.matmul(q, k.transpose(2, 3)) * (q_scale * k_scale).to(dtype)
    weights = fp8.round_e4m3(torch.softmax(scores, -1), 1 / fp8.E4M3_MAX)
    out = (torch.matmul(weights, v).float() * v_scale).to(dtype)
    out = out.transpose(1, 2).reshape(batch, num_tokens, channels)
    return F.pad(out, (0, 0, 0, length - num_tokens))


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
