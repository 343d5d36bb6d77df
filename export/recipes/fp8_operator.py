"""The torch operator of an FP8 linear, its ONNX node and the schema of that node.

The node ``fastwan::FP8Linear`` is never saved: the pass `expand_fp8` replaces it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnx.defs import OpSchema
from torch import Tensor

from fastwan.export import fp8, schemas

PER_TENSOR = "per_tensor"


def activation_scale(x: Tensor, static: Tensor | None, activation: str, tokens: int) -> Tensor:
    """Scale of an activation.

    Args:
        x: [B, L, K].
        static: [] fp32, where a calibration decided it.
        activation: row of `fastwan.config.ACTIVATIONS`.
        tokens: rows that take part in a maximum over the tensor, since those behind them are
            padding; 0 for all.

    Returns:
        fp32, [B, L, 1], [1, 1, 1] or [].
    """
    if static is not None:
        return static
    # Over a row first: a builder makes that a part of the kernel that wrote it.
    amax = x.abs().amax(-1, keepdim=True)
    if activation == PER_TENSOR:
        amax = amax[:, : tokens or None].amax().reshape(1, 1, 1)
    return fp8.scale_of(amax)


@torch.library.custom_op("fastwan::fp8_linear", mutates_args=())
def fp8_linear(
    x: Tensor,
    codes: Tensor,
    weight_scale: Tensor,
    input_scale: Tensor | None,
    activation: str,
    tokens: int,
    quantize_activation: bool,
) -> Tensor:
    """``x @ W^T`` with an FP8 weight: accumulated in fp32, rounded, scaled, rounded.

    Args:
        x: activations [B, L, K], bf16 or fp32.
        codes: [N, K] float8_e4m3fn.
        weight_scale: [] fp32.
        input_scale: see `activation_scale`, as are `activation` and `tokens`.
        quantize_activation: quantise `x` too, or leave it as it is.

    Returns:
        [B, L, N] in the dtype of `x`.
    """
    factor, rows = weight_scale, x.float()
    if quantize_activation:
        scale = activation_scale(x, input_scale, activation, tokens)
        rows = fp8.codes_of(fp8.scaled(x, scale)).float()
        factor = scale * weight_scale
    product = torch.matmul(rows, codes.float().t()).to(x.dtype)
    return (product.float() * factor).to(x.dtype)


@fp8_linear.register_fake
def _(
    x: Tensor,
    codes: Tensor,
    weight_scale: Tensor,
    input_scale: Tensor | None,
    activation: str,
    tokens: int,
    quantize_activation: bool,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], codes.shape[0]))


def _schema() -> OpSchema:
    fp32 = "tensor(float)"
    return OpSchema(
        "FP8Linear",
        schemas.DOMAIN,
        schemas.VERSION,
        doc="x W^T with an FP8 weight; replaced by quantise and dequantise nodes before saving.",
        inputs=[
            schemas.parameter("x", "T", "[B, L, K]"),
            schemas.parameter("codes", "tensor(float8e4m3fn)", "[N, K]"),
            schemas.parameter("weight_scale", fp32, "[]"),
            OpSchema.FormalParameter(
                "input_scale",
                fp32,
                "[], of a static activation",
                param_option=OpSchema.FormalParameterOption.Optional,
            ),
        ],
        outputs=[schemas.parameter("y", "T", "[B, L, N]")],
        type_constraints=[("T", schemas.FLOATS, "activations")],
        attributes=[
            schemas.attribute("activation", OpSchema.AttrType.STRING, "how it is scaled"),
            schemas.attribute("tokens", OpSchema.AttrType.INT, "rows that are no padding"),
            schemas.attribute("quantize_activation", OpSchema.AttrType.INT, "0: leave x as it is"),
        ],
    )


def translations() -> dict[Any, Callable[..., Any]]:
    """See `Recipe.translations`."""
    from onnxscript.values import Opset

    schemas.register(_schema())
    opset = Opset(schemas.DOMAIN, schemas.VERSION)

    def onnx_fp8_linear(
        x: Any,
        codes: Any,
        weight_scale: Any,
        input_scale: Any,
        activation: str,
        tokens: int,
        quantize_activation: bool,
    ) -> Any:
        static = () if input_scale is None else (input_scale,)
        return opset.FP8Linear(
            x,
            codes,
            weight_scale,
            *static,
            activation=activation,
            tokens=tokens,
            quantize_activation=int(quantize_activation),
        )

    return {torch.ops.fastwan.fp8_linear.default: onnx_fp8_linear}
