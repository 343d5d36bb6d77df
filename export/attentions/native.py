"""Attention ``native``: norm, RoPE and bf16 attention by the builder's own kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fastwan.export.attentions.base import EXACT, Attention, Division, Form

if TYPE_CHECKING:
    import onnx_ir as ir

BLOCKS = 1
"""Blocks in an engine where nothing else divides the transformer. More of them save a norm's pass
over the hidden state (101 MB), and cost 131 MB of scratch and memory at build time."""

SINGLE_ENGINE_BYTES = 1 << 20
"""Hidden state up to which all is one engine; a larger one is worth dividing for."""


def _sdpa(
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
    """The reference's prologue with sums in the order of the builder's choice, then SDPA.

    q and k go through norm and RoPE as one tensor, and the builder joins v: two kernels over the
    GEMM's output make all three.
    """
    batch, length, channels = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    thirds, dtype = (batch, -1, 3, channels), qkv.dtype
    factor, bias = qkv_scale.reshape(3, 1), qkv_bias.reshape(3, channels)
    # The mean of squares has a path of its own from the GEMM's output, over all rows: were any
    # value of it the other kernel's too, the builder would store it in fp32.
    x = (qkv.reshape(thirds).float() * factor).to(dtype) + bias
    mean = (x.float() * x.float()).mean(-1, keepdim=True)
    # Keys past the last token are left out, and with them the queries: one shape for all.
    tokens = num_tokens
    x = (qkv[:, :tokens].reshape(thirds).float() * factor).to(dtype) + bias
    scale = torch.rsqrt(mean[:, :tokens, :2] + eps)
    pairs = (x[:, :, :2].float() * scale).to(dtype) * torch.stack([q_norm, k_norm])
    pairs = pairs.reshape(batch, tokens, 2, num_heads, -1, 2).float()
    cos, sin = rope_cos[:tokens, None, None], rope_sin[:tokens, None, None]
    even, odd = pairs[..., 0], pairs[..., 1]
    rotated = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    rotated = rotated.reshape(batch, tokens, 2, num_heads, -1).to(dtype)
    q, k = rotated.permute(2, 0, 3, 1, 4).unbind()
    v = x[:, :, 2].reshape(batch, tokens, num_heads, -1).transpose(1, 2)
    out = F.scaled_dot_product_attention(q, k, v, scale=softmax_scale)
    out = out.transpose(1, 2).reshape(batch, tokens, channels)
    return F.pad(out, (0, 0, 0, length - tokens))


SDPA = Form("native", _sdpa)


@dataclass(frozen=True)
class Native(Attention):
    """The node becomes standard operators, whatever the backend."""

    name: str = "native"
    uses_library = False
    reference = EXACT

    def divide(self, dit: ir.Model, *, plugins: bool) -> Division:
        """One engine, or one for `BLOCKS` blocks where the hidden state is large."""
        from fastwan.export.passes.cut_at_blocks import cut_every
        from fastwan.export.passes.graphs import clone
        from fastwan.export.passes.lower_attention import lower_attention

        lowered = lower_attention(clone(dit), SDPA)[0]
        if _hidden_bytes(dit) <= SINGLE_ENGINE_BYTES:
            return Division((lowered,))
        return Division(cut_every(lowered, BLOCKS))


def _hidden_bytes(dit: ir.Model) -> int:
    """Bytes of the hidden state, which every attention node's output has the size of."""
    from fastwan.export.passes.graphs import FASTWAN, nbytes

    nodes = (node for node in dit.graph if node.domain == FASTWAN)
    return max((nbytes(node.outputs[0]) for node in nodes), default=0)
