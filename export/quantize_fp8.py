"""FP8 weights by ModelOpt, one linear at a time.

ModelOpt calibrates the weight and casts it; its default for activations, a static scale, is not
what the models were trained with, so its input quantiser stays off.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastwan.export.code_table import row_slices
from fastwan.export.fp8 import SMALLEST_SCALE
from fastwan.export.quantize import calibrated, import_modelopt

_CONFIG: dict[str, Any] = {
    "quant_cfg": [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": (4, 3), "axis": None}},
    ],
    "algorithm": "max",
}


def quantize_linear_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise one linear: ``mtq.quantize`` finds its largest value, `FP8QTensor` casts it.

    The published codes are divided by the scale in bf16, so ModelOpt is given that; the scale that
    is returned is not rounded. A scale below FastVideo's floor is raised to it.

    Args:
        weight: [N, K] bf16.

    Returns:
        Codes [N, K] float8_e4m3fn and the fp32 scale [].

    Raises:
        EnvironmentLacks: ModelOpt cannot be imported.
    """
    qtensor = import_modelopt("modelopt.torch.quantization.qtensor").FP8QTensor
    amax: Tensor = calibrated(weight, _CONFIG).weight_quantizer.amax
    scale = torch.clamp(amax.float().reshape(()) / 448.0, min=SMALLEST_SCALE)
    codes = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    for rows in row_slices(weight):
        tensor, _ = qtensor.quantize(weight[rows], scale.to(weight.dtype))
        codes[rows] = tensor._quantized_data
    return codes, scale
