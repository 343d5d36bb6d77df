"""The two torch operators that stand for hardware kernels, with their ONNX translation.

Each has a torch kernel (the reference, so the module that is exported also runs), a shape function
(so it can be traced without weights) and an ONNX node of the domain ``fastwan``. The node
``NVFP4Linear`` is expanded to quantise/dequantise nodes by the pass `expand_nvfp4`; the node
``SageAttention3`` stays in the file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastwan.export import schemas
from fastwan.plugins import nvfp4, reference


@torch.library.custom_op("fastwan::nvfp4_linear", mutates_args=())
def nvfp4_linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    block_scale: torch.Tensor,
    global_scale: torch.Tensor,
    quantize_activation: bool,
) -> torch.Tensor:
    """``x @ W^T`` with an NVFP4 weight, accumulated in fp32 and rounded once.

    Args:
        x: activations [..., K], bf16 or fp32.
        packed: weight codes [N, K/2] uint8, low nibble first.
        block_scale: [N, K/16] float8_e4m3fn.
        global_scale: [] fp32, multiplied onto the accumulator as the GEMM's alpha.
        quantize_activation: quantise `x` with the static global scale 1.0 (numerics of the model)
            or leave it as it is.

    Returns:
        [..., N] in the dtype of `x`.
    """
    one = torch.ones((), dtype=torch.float32)
    weight = nvfp4.dequantize_weight(nvfp4.PackedWeight(packed, block_scale, one))
    rows = nvfp4.fake_quantize_activation(x) if quantize_activation else x.float()
    return (torch.matmul(rows, weight.t()) * global_scale).to(x.dtype)


@nvfp4_linear.register_fake
def _(
    x: torch.Tensor,
    packed: torch.Tensor,
    block_scale: torch.Tensor,
    global_scale: torch.Tensor,
    quantize_activation: bool,
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], packed.shape[0]))


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

    schemas.register()
    opset = Opset(schemas.DOMAIN, schemas.VERSION)

    def onnx_nvfp4_linear(
        x: Any, packed: Any, block_scale: Any, global_scale: Any, quantize_activation: bool
    ) -> Any:
        return opset.NVFP4Linear(
            x, packed, block_scale, global_scale, quantize_activation=int(quantize_activation)
        )

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
        torch.ops.fastwan.nvfp4_linear.default: onnx_nvfp4_linear,
        torch.ops.fastwan.sage_attention3.default: onnx_sage_attention3,
    }
