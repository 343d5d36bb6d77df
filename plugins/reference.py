"""What the attention node computes, in torch: the definition of the CUDA kernels.

The kernels, their host emulation, the ONNX Runtime lowering and `verify` are held against it: the
prologue (`prologue_reference`), the packing of its results (`packing`), which is bit-exact, and the
attention (`attention_reference`).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from fastwan.plugins.attention_reference import DividedKeys, sage_attention
from fastwan.plugins.prologue_reference import prologue, prologue_rows


def _exact(x: Tensor) -> Tensor:
    return x


def attention_node(
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
    divided: DividedKeys | None = None,
) -> Tensor:
    """The whole node ``fastwan::SageAttention3``; arguments as `prologue` and `sage_attention`.

    Returns:
        [B, L, C] bf16, zero from row `num_tokens` on.
    """
    rows = prologue(
        qkv, qkv_scale, qkv_bias, q_norm, k_norm, rope_cos, rope_sin,
        num_heads=num_heads, num_tokens=num_tokens, eps=eps,
    )  # fmt: skip
    q, k, v = (x[:, :num_tokens] for x in rows)
    out = sage_attention(q, k, v, softmax_scale, exact_max=exact_max, divided=divided).flatten(2)
    return functional.pad(out, (0, 0, 0, qkv.shape[1] - num_tokens))


def attention_node_fp32(
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
) -> Tensor:
    """The node without any rounding: the same prologue in fp32, then exact softmax attention.

    Returns:
        [B, L, C] fp32, zero from row `num_tokens` on.
    """
    rows = prologue_rows(
        qkv, qkv_scale, qkv_bias, q_norm, k_norm, rope_cos, rope_sin,
        num_heads, num_tokens, eps, _exact,
    )  # fmt: skip
    q, k, v = (x.transpose(1, 2) for x in rows)
    out = functional.scaled_dot_product_attention(q, k, v, scale=softmax_scale)
    return functional.pad(out.transpose(1, 2).flatten(2), (0, 0, 0, qkv.shape[1] - num_tokens))
