"""The torch operator of the attention node, with its ONNX translation.

It has a torch kernel (the reference, so the module that is exported also runs), a shape function
(so it can be traced without weights) and an ONNX node of the domain ``fastwan``, which stays in the
file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastwan.export import schemas
from fastwan.plugins import reference


@torch.library.custom_op("fastwan::sage_attention3", mutates_args=())
def sage_attention3(
    qkv: torch.Tensor,
    qkv_scale: torch.Tensor,
    qkv_bias: torch.Tensor,
    q_norm: torch.Tensor,
    k_norm: torch.Tensor,
    rope_cos: torch.Tensor,
    rope_sin: torch.Tensor,
    num_heads: int,
    num_tokens: int,
    eps: float,
    softmax_scale: float,
    exact_max: bool,
) -> torch.Tensor:
    """Everything between the qkv GEMM and the output GEMM; see `reference.attention_node`.

    bf16 input gets the FP4 attention, fp32 input exact attention in fp32.
    """
    node = reference.attention_node_fp32 if qkv.dtype == torch.float32 else reference.attention_node
    options: dict[str, Any] = {} if qkv.dtype == torch.float32 else {"exact_max": exact_max}
    return node(
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
        softmax_scale=softmax_scale,
        **options,
    )


@sage_attention3.register_fake
def _(
    qkv: torch.Tensor,
    qkv_scale: torch.Tensor,
    qkv_bias: torch.Tensor,
    q_norm: torch.Tensor,
    k_norm: torch.Tensor,
    rope_cos: torch.Tensor,
    rope_sin: torch.Tensor,
    num_heads: int,
    num_tokens: int,
    eps: float,
    softmax_scale: float,
    exact_max: bool,
) -> torch.Tensor:
    batch, length, channels = qkv.shape
    return qkv.new_empty((batch, length, channels // 3))


def translations() -> dict[Any, Callable[..., Any]]:
    """Table for ``torch.onnx.export(custom_translation_table=...)``."""
    from onnxscript.values import Opset

    schemas.register(schemas.sage_attention3())
    opset = Opset(schemas.DOMAIN, schemas.VERSION)

    def onnx_sage_attention3(
        qkv: Any,
        qkv_scale: Any,
        qkv_bias: Any,
        q_norm: Any,
        k_norm: Any,
        rope_cos: Any,
        rope_sin: Any,
        num_heads: int,
        num_tokens: int,
        eps: float,
        softmax_scale: float,
        exact_max: bool,
    ) -> Any:
        return opset.SageAttention3(
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
            softmax_scale=softmax_scale,
            exact_max=int(exact_max),
        )

    def onnx_signbit(x: Any) -> Any:
        # copysign is decomposed to it; minus zero counts as positive, which no sum can tell.
        from onnxscript import opset23

        return opset23.Less(x, opset23.CastLike(opset23.Constant(value_float=0.0), x))

    return {
        torch.ops.prims.signbit.default: onnx_signbit,
        torch.ops.fastwan.sage_attention3.default: onnx_sage_attention3,
    }
