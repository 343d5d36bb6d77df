"""The torch operator of an NVFP4 linear, its ONNX node and the schema of that node.

It has a torch kernel (the reference, so the module that is exported also runs) and a shape function
(so it can be traced without weights). The node ``fastwan::NVFP4Linear`` is never saved: the pass
`expand_nvfp4` replaces it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnx.defs import OpSchema

from fastwan.export import schemas
from fastwan.plugins import nvfp4


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


def _schema() -> OpSchema:
    return OpSchema(
        "NVFP4Linear",
        schemas.DOMAIN,
        schemas.VERSION,
        doc="x W^T with an NVFP4 weight; replaced by quantise and dequantise nodes before saving.",
        inputs=[
            schemas.parameter("x", "T", "[..., K]"),
            schemas.parameter("packed", "tensor(uint8)", "[N, K/2], low nibble first"),
            schemas.parameter("block_scale", "tensor(float8e4m3fn)", "[N, K/16]"),
            schemas.parameter("global_scale", "tensor(float)", "[]"),
        ],
        outputs=[schemas.parameter("y", "T", "[..., N]")],
        type_constraints=[("T", schemas.FLOATS, "activations")],
        attributes=[
            schemas.attribute("quantize_activation", OpSchema.AttrType.INT, "0: leave x as it is"),
        ],
    )


def translations() -> dict[Any, Callable[..., Any]]:
    """See `Recipe.translations`."""
    from onnxscript.values import Opset

    schemas.register(_schema())
    opset = Opset(schemas.DOMAIN, schemas.VERSION)

    def onnx_nvfp4_linear(
        x: Any, packed: Any, block_scale: Any, global_scale: Any, quantize_activation: bool
    ) -> Any:
        return opset.NVFP4Linear(
            x, packed, block_scale, global_scale, quantize_activation=int(quantize_activation)
        )

    return {torch.ops.fastwan.nvfp4_linear.default: onnx_nvfp4_linear}
