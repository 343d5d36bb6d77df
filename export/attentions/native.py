"""Attention ``native``: norm, RoPE and bf16 attention by the builder's own kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from fastwan.export.attentions.base import EXACT, Attention, Division, Form
from fastwan.export.attentions.heads import rotated_heads

if TYPE_CHECKING:
    import onnx_ir as ir

BLOCKS = 1
"""Blocks in an engine where nothing else divides the transformer. More of them cost 131 MB of
scratch and memory at build time; where linears are not quantised, they save a norm's pass over the
hidden state (101 MB)."""

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
    """The reference's prologue, then SDPA."""
    batch, length, channels = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    q, k, x = rotated_heads(
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
    v = x[:, :, 2].reshape(batch, num_tokens, num_heads, -1).transpose(1, 2)
    out = F.scaled_dot_product_attention(q, k, v, scale=softmax_scale)
    out = out.transpose(1, 2).reshape(batch, num_tokens, channels)
    return F.pad(out, (0, 0, 0, length - num_tokens))


SDPA = Form("native", _sdpa)


@dataclass(frozen=True)
class Native(Attention):
    """The node becomes standard operators, whatever the backend."""

    name: str = "native"
    uses_library = False
    reference = EXACT

    def divide(self, dit: ir.Model, *, plugins: bool) -> Division:
        return divide_blocks(dit, SDPA)


def divide_blocks(dit: ir.Model, form: Form) -> Division:
    """One engine, or one for `BLOCKS` blocks where the hidden state is large.

    Args:
        dit: see `Attention.divide`.
        form: standard operators that take the place of the attention node.
    """
    from fastwan.export.passes.cut_at_blocks import cut_every
    from fastwan.export.passes.graphs import clone
    from fastwan.export.passes.lower_attention import lower_attention

    lowered = lower_attention(clone(dit), form)[0]
    if _hidden_bytes(dit) <= SINGLE_ENGINE_BYTES:
        return Division((lowered,))
    return Division(cut_every(lowered, BLOCKS))


def _hidden_bytes(dit: ir.Model) -> int:
    """Bytes of the hidden state, which every attention node's output has the size of."""
    from fastwan.export.passes.graphs import FASTWAN, nbytes

    nodes = (node for node in dit.graph if node.domain == FASTWAN)
    return max((nbytes(node.outputs[0]) for node in nodes), default=0)
