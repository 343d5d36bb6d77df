"""Recipe ``fp8``: e4m3 weights and activations, one scale a weight, activation scales computed.

What a builder gets has the scale 1 in every quantise and dequantise node. The true scales stand
outside: an activation is divided by its own before, the product multiplied by both behind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from onnx import TensorProto

from fastwan.config import ACTIVATIONS
from fastwan.errors import BadInput
from fastwan.export.recipes.base import WEIGHT, Fault, Gate, Kernel, Recipe
from fastwan.tables import known

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from torch import Tensor

    from fastwan.export.recipes.graph_index import GraphIndex

FP8_WORDS = ("FP8", "FP8E4M3")
"""The builder's words for the dtype, in layer records."""

STATIC = "static"
SCALE, INPUT_SCALE = "weight_scale", "input_scale"


@dataclass(frozen=True)
class FP8(Recipe):
    """FP8.

    Attributes:
        activation: how activations are scaled, a row of `fastwan.config.ACTIVATIONS`.
        input_scales: of a static activation, (linear, scale) pairs from a calibration.
    """

    name: str = "fp8"
    activation: str = "per_token"
    input_scales: tuple[tuple[str, float], ...] = ()
    operator = "FP8Linear"
    global_scales = (SCALE,)

    @property
    def gate(self) -> Gate:
        return _GATE

    @property
    def activation_name(self) -> str:
        return self.activation

    @property
    def activation_scales(self) -> dict[str, float]:
        return dict(self.input_scales)

    def with_activation(self, activation: str, scales: Mapping[str, float]) -> Recipe:
        known(ACTIVATIONS, activation, "activation scale")
        return replace(self, activation=activation, input_scales=tuple(sorted(scales.items())))

    def convert(self, weight: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        import torch

        from fastwan.export.quantize_fp8 import quantize_linear_fp8

        return _named(quantize_linear_fp8(weight.to(torch.bfloat16)))

    def reference(self, weight: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        import torch

        from fastwan.export.fp8 import quantize_weight

        return _named(quantize_weight(weight.to(torch.bfloat16)))

    def of_input(self, linear: str) -> dict[str, Tensor]:
        import torch

        if self.activation != STATIC:
            return {}
        scale = self.activation_scales.get(linear)
        if scale is None:
            raise BadInput(
                "no calibrated scale of its activation",
                where=linear,
                fix="build it again, or with another --activation-scale",
            )
        return {INPUT_SCALE: torch.tensor(scale, dtype=torch.float32)}

    def merge(self, parts: Sequence[Mapping[str, Tensor]]) -> tuple[dict[str, Tensor], Tensor]:
        """See `Recipe.merge`; the merged weight has the scale 1, and three factors outside."""
        import torch

        codes = torch.cat([part[WEIGHT].view(torch.uint8) for part in parts])
        merged = {WEIGHT: codes.view(torch.float8_e4m3fn), SCALE: torch.ones(())}
        return merged, torch.stack([part[SCALE] for part in parts])

    def buffers(self, inputs: int, outputs: int, dtype: torch.dtype) -> dict[str, Tensor]:
        import torch

        buffers = {
            WEIGHT: torch.empty(outputs, inputs, dtype=torch.float8_e4m3fn),
            SCALE: torch.empty((), dtype=torch.float32),
        }
        if self.activation == STATIC:
            buffers[INPUT_SCALE] = torch.empty((), dtype=torch.float32)
        return buffers

    def multiply(
        self,
        x: Tensor,
        stored: Mapping[str, Tensor],
        *,
        quantize_activation: bool,
        tokens: int | None = None,
    ) -> Tensor:
        from fastwan.export.recipes.fp8_operator import fp8_linear

        product: Tensor = fp8_linear(
            x,
            stored[WEIGHT],
            stored[SCALE],
            stored.get(INPUT_SCALE),
            self.activation,
            tokens or 0,
            quantize_activation,
        )
        return product

    def translations(self) -> dict[Any, Callable[..., Any]]:
        from fastwan.export.recipes.fp8_operator import translations

        return translations()

    def expand(self, model: ir.Model) -> tuple[ir.Model, bool]:
        from fastwan.export.passes.expand_fp8 import expand_fp8

        return expand_fp8(model)

    def arrange(self, model: ir.Model) -> bool:
        from fastwan.export.passes.attend_rows import attend_rows
        from fastwan.export.passes.read_once import read_once

        changed = [each(model)[1] for each in (attend_rows, read_once)]
        return any(changed)

    def scale_rows(self, model: ir.Model) -> bool:
        from fastwan.export.passes.scale_rows import scale_rows

        return scale_rows(model)

    def lower(self, model: ir.Model, *, quantize_activations: bool) -> bool:
        from fastwan.export.passes.lower_fp8 import lower_fp8

        return lower_fp8(model, quantize_activations=quantize_activations)[1]


def _named(made: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    return dict(zip((WEIGHT, SCALE), made, strict=True))


class _Gate(Gate):
    """Every linear an FP8 GEMM.

    The pattern in a graph is ``MatMul(x, w)`` with ``w = Transpose(DequantizeLinear(e4m3
    initializer, 1))`` and ``x = DequantizeLinear(QuantizeLinear(.., 1), 1)``. With a computed scale
    TensorRT widens the weight and multiplies in bf16 inside a ``runtime_fusion``, without a word.
    """

    label = "FP8"
    wanted = "an FP8 GEMM"
    fix = "keep the scale 1 constant in every QuantizeLinear and DequantizeLinear of a linear"

    def weight_elements(self, graph: GraphIndex, node: str) -> int:
        activation, weight = graph.matmul(node)
        transpose = graph.producers.get(weight)
        if transpose is None or transpose.op_type != "Transpose":
            raise Fault("its weight is not transposed in this graph")
        codes = _unscaled(graph, transpose.input[0], "DequantizeLinear", "weight")
        elements = graph.initializer(codes, TensorProto.FLOAT8E4M3FN, "weight")
        codes = _unscaled(graph, activation, "DequantizeLinear", "activation")
        _unscaled(graph, codes, "QuantizeLinear", "activation")
        return elements

    def computes(self, kernel: Kernel) -> bool:
        dtypes = [tensor.dtype for tensor in kernel.operands]
        return kernel.kind == "gemm" and len(dtypes) == 2 and set(dtypes) <= set(FP8_WORDS)


_GATE = _Gate()


def _unscaled(graph: GraphIndex, value: str, op_type: str, role: str) -> str:
    """Input of the node that makes `value`, which has to be of that type with the scale 1."""
    node = graph.producers.get(value)
    if node is None or node.op_type != op_type:
        raise Fault(f"no {op_type} stands between its {role} and the MatMul")
    if graph.scalar(node.input[1]) != 1:
        raise Fault(f"the {op_type} of its {role} has not the constant scale 1")
    return str(node.input[0])
