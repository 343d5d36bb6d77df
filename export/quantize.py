"""NVFP4 weights by ModelOpt, one linear at a time.

The recipe is the model's own: weights with a max-calibrated global scale, activations with the
static global scale 1.0 that the model was distilled with. ModelOpt's default calibration of the
activations would change that.
"""

from __future__ import annotations

import contextlib
import io
import math
import threading
import warnings
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from fastwan.errors import EnvironmentLacks
from fastwan.export.code_table import code_table, row_slices
from fastwan.install import how_to_install
from fastwan.parallel import collector_paused
from fastwan.plugins.nvfp4 import E2M1_MAX, E4M3_MAX, PackedWeight, quantize_weight

_NVFP4: dict[str, Any] = {
    "num_bits": (2, 1),
    "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)},
}
_BLOCK = 16
_MODELOPT_LOCK = threading.Lock()
"""ModelOpt prints and warns through process-wide switches, so one thread at a time converts."""


def modelopt_config() -> dict[str, Any]:
    """ModelOpt configuration of the recipe: NVFP4 weights and inputs, nothing else."""
    return {
        "quant_cfg": [
            {"quantizer_name": "*", "enable": False},
            {"quantizer_name": "*weight_quantizer", "cfg": _NVFP4},
            {"quantizer_name": "*input_quantizer", "cfg": _NVFP4},
        ],
        "algorithm": "max",
    }


def calibrated(weight: Tensor, config: dict[str, Any]) -> Any:
    """A linear of a weight [N, K], with the quantisers that ModelOpt gives it by `config`.

    Raises:
        EnvironmentLacks: ModelOpt cannot be imported.
    """
    mtq = import_modelopt("modelopt.torch.quantization")
    linear = torch.nn.Linear(
        weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype, device="meta"
    )
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    model: Any = torch.nn.Sequential(linear)
    with _MODELOPT_LOCK, contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mtq.quantize(model, config, None)
    return model[0]


def quantize_linear(
    weight: Tensor, activation_global_scale: float = 1.0
) -> tuple[PackedWeight, float]:
    """Quantise one linear with ModelOpt: ``mtq.quantize`` calibrates it, `NVFP4QTensor` packs it.

    ``mtq.compress`` packs with the same function and gives the same bytes. Called by rows it works
    in the cache, needs no copies of the weight's size, and two threads do not wait for each other;
    called for a `fastwan.export.code_table` it converts each pair of values once.

    Args:
        weight: [N, K] bf16.
        activation_global_scale: static, of the recipe.

    Returns:
        The packed weight and the activation's global scale as ModelOpt derives it from
        ``input_quantizer.amax``; for FastWan-QAD amax is 2688 and the scale 1.0. A weight of
        zeros is the reference's: ModelOpt divides it by its own global scale 0 and stores NaN.

    Raises:
        EnvironmentLacks: ModelOpt cannot be imported.
    """
    qtensor = import_modelopt("modelopt.torch.quantization.qtensor").NVFP4QTensor
    linear = calibrated(weight, modelopt_config())
    linear.input_quantizer.amax = torch.tensor(activation_global_scale * E2M1_MAX * E4M3_MAX)
    activation = float(linear.input_quantizer.amax.float() / (E2M1_MAX * E4M3_MAX))
    scale = qtensor.get_weights_scaling_factor_2_from_quantizer(linear.weight_quantizer)
    if not scale:
        return quantize_weight(weight), activation
    packed, block_scale = _pack(qtensor, weight, scale)
    return PackedWeight(packed, block_scale, scale.reshape(())), activation


def _pack(qtensor: Any, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Packed codes and block scales of a weight under its global scale, by ModelOpt."""
    block_scale = torch.empty(
        (weight.shape[0], weight.shape[1] // _BLOCK), dtype=torch.float8_e4m3fn
    )
    for rows in row_slices(weight):
        block_scale[rows], _ = qtensor.get_weights_scaling_factor(weight[rows], _BLOCK, scale)

    def convert(values: Tensor, factors: Tensor) -> Tensor:
        tensor, _, _ = qtensor.quantize(
            values, _BLOCK, weights_scaling_factor=factors, weights_scaling_factor_2=scale
        )
        codes: Tensor = tensor._quantized_data
        return codes

    table = code_table(weight, block_scale, scale, convert)
    if table is not None:
        return table.pack(weight, block_scale), block_scale
    packed = torch.empty((weight.shape[0], weight.shape[1] // 2), dtype=torch.uint8)
    for rows in row_slices(weight):
        packed[rows] = convert(weight[rows], block_scale[rows])
    return packed, block_scale


def import_modelopt(module: str) -> Any:
    """A module of ModelOpt.

    Raises:
        EnvironmentLacks: it cannot be imported.
    """
    try:
        with _MODELOPT_LOCK, collector_paused(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module(module)
    except ImportError as error:
        raise EnvironmentLacks(
            f"nvidia-modelopt cannot be imported: {error}", fix=how_to_install("build")
        ) from None


def convert_linear(weight: Tensor, activation_global_scale: float) -> PackedWeight:
    """`quantize_linear`, which must not change the recipe's activation scale."""
    packed, activation = quantize_linear(weight, activation_global_scale)
    # ModelOpt keeps amax in fp32, so a scale that is no fp32 number comes back rounded.
    wanted = activation_global_scale
    assert math.isclose(activation, wanted, rel_tol=1e-6), (activation, wanted)
    return packed
