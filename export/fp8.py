"""FP8 (e4m3) as the published FP8 models compute it, and the torch operator that rounds to it.

The formula is FastVideo's (``fastvideo/layers/quantization/fp8_config.py``). In a graph every
quantise node has a constant scale, since builders keep FP8 for no other: a true scale is divided
out before the node and multiplied onto the product behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

E4M3_MAX = 448.0
SMALLEST_SCALE = 1 / (E4M3_MAX * 512)
"""Floor of a scale: what a tensor of zeros has."""


def scale_of(amax: Tensor) -> Tensor:
    """fp32 scale under which a largest magnitude becomes 448: ``max(amax / 448, floor)``."""
    return torch.clamp(amax.float() / E4M3_MAX, min=SMALLEST_SCALE)


def scaled(x: Tensor, scale: Tensor) -> Tensor:
    """``x / scale`` in the dtype of `x`: by the scale in that dtype, the quotient rounded to it."""
    return x / scale.to(x.dtype)


def codes_of(x: Tensor) -> Tensor:
    """The nearest float8_e4m3fn, ties to even, saturated at 448."""
    return torch.clamp(x.float(), -E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of a weight by torch's own casts, and their scale.

    A code is the result of two roundings, of the quotient to bf16 and of that to e4m3, under the
    scale rounded to bf16; a product is multiplied by the unrounded one.

    Args:
        weight: [N, K] bf16.

    Returns:
        Codes [N, K] float8_e4m3fn and the fp32 scale [] of the whole tensor.
    """
    scale = scale_of(weight.abs().amax())
    return codes_of(scaled(weight, scale)), scale


@torch.library.custom_op("fastwan::round_e4m3", mutates_args=())
def round_e4m3(x: Tensor, scale: float) -> Tensor:
    """The multiple of `scale` by an e4m3 number that is nearest to `x`, in the dtype of `x`.

    Traced to QuantizeLinear and DequantizeLinear with a constant scale.
    """
    return (codes_of(x.float() / scale).float() * scale).to(x.dtype)


@round_e4m3.register_fake
def _(x: Tensor, scale: float) -> Tensor:
    return torch.empty_like(x)


def translations() -> dict[Any, Callable[..., Any]]:
    """Table for ``torch.onnx.export(custom_translation_table=...)``."""
    from onnx import TensorProto
    from onnxscript import opset23

    def onnx_round_e4m3(x: Any, scale: float) -> Any:
        constant = opset23.CastLike(opset23.Constant(value_float=scale), x)
        codes = opset23.QuantizeLinear(x, constant, output_dtype=TensorProto.FLOAT8E4M3FN)
        return opset23.DequantizeLinear(codes, constant)

    return {torch.ops.fastwan.round_e4m3.default: onnx_round_e4m3}
