"""Recipe ``nvfp4``: FP4 weights and activations with a scale for every 16 values.

A weight is e2m1 codes, an e4m3 scale a block and an fp32 global scale; an activation is quantised
as the engine runs, under the static global scale that the model was distilled with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnx import TensorProto

from fastwan.export.recipes.base import WEIGHT, Fault, Gate, Kernel, Recipe

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from torch import Tensor

    from fastwan.export.passes.bare_gemm import BareGemm
    from fastwan.export.recipes.graph_index import GraphIndex
    from fastwan.plugins.nvfp4 import PackedWeight

BLOCK = 16
QUANTISE = ("trt", "TRT_FP4DynamicQuantize")
"""Domain and type of the node that quantises an activation."""

FP4 = "FP4E2M1"
"""The builder's word for the dtype, in layer records."""

SCALE, GLOBAL_SCALE = "weight_scale", "weight_scale_2"
_KEEPS_FP4 = {"Cast", "Transpose"}


@dataclass(frozen=True)
class NVFP4(Recipe):
    """NVFP4.

    Attributes:
        activation_global_scale: static second-level scale of the activations.
    """

    name: str = "nvfp4"
    activation_global_scale: float = 1.0
    operator = "NVFP4Linear"
    global_scales = (GLOBAL_SCALE,)
    gives_weights = True

    @property
    def gate(self) -> Gate:
        return _GATE

    def convert(self, weight: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        import torch

        from fastwan.export.quantize import convert_linear

        return _named(convert_linear(weight.to(torch.bfloat16), self.activation_global_scale))

    def reference(self, weight: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        import torch

        from fastwan.plugins.nvfp4 import quantize_weight

        return _named(quantize_weight(weight.to(torch.bfloat16)))

    def merge(self, parts: Sequence[Mapping[str, Tensor]]) -> tuple[dict[str, Tensor], Tensor]:
        """See `Recipe.merge`; the merged weight has global scale 1, so that the GEMMs merge."""
        import torch

        scales = torch.cat([part[SCALE].view(torch.uint8) for part in parts])
        merged = {
            WEIGHT: torch.cat([part[WEIGHT] for part in parts]),
            SCALE: scales.view(torch.float8_e4m3fn),
            GLOBAL_SCALE: torch.ones(()),
        }
        return merged, torch.stack([part[GLOBAL_SCALE] for part in parts])

    def buffers(self, inputs: int, outputs: int, dtype: torch.dtype) -> dict[str, Tensor]:
        import torch

        return {
            WEIGHT: torch.empty(outputs, inputs // 2, dtype=torch.uint8),
            SCALE: torch.empty(outputs, inputs // BLOCK, dtype=torch.float8_e4m3fn),
            GLOBAL_SCALE: torch.empty((), dtype=torch.float32),
        }

    def multiply(
        self,
        x: Tensor,
        stored: Mapping[str, Tensor],
        *,
        quantize_activation: bool,
        tokens: int | None = None,
    ) -> Tensor:
        from fastwan.export.recipes.nvfp4_operator import nvfp4_linear

        product: Tensor = nvfp4_linear(
            x, stored[WEIGHT], stored[SCALE], stored[GLOBAL_SCALE], quantize_activation
        )
        return product

    def translations(self) -> dict[Any, Callable[..., Any]]:
        from fastwan.export.recipes.nvfp4_operator import translations

        return translations()

    def expand(self, model: ir.Model) -> tuple[ir.Model, bool]:
        from fastwan.export.passes.expand_nvfp4 import expand_nvfp4

        return expand_nvfp4(model, activation_global_scale=self.activation_global_scale)

    def scale_behind(self, model: ir.Model) -> bool:
        from fastwan.export.passes.bare_gemm import scale_behind

        return scale_behind(model)

    def bare_gemm(self, segment: ir.Model) -> BareGemm | None:
        from fastwan.export.passes.bare_gemm import bare_gemm

        return bare_gemm(segment)

    def lower(self, model: ir.Model, *, quantize_activations: bool) -> bool:
        from fastwan.export.passes.lower_nvfp4 import lower_nvfp4

        return lower_nvfp4(model, quantize_activations=quantize_activations)[1]


def _named(packed: PackedWeight) -> dict[str, Tensor]:
    return dict(zip((WEIGHT, SCALE, GLOBAL_SCALE), packed, strict=True))


def is_fp4_gemm(kernel: Kernel) -> bool:
    """Whether a kernel multiplies two FP4 operands."""
    return kernel.kind == "gemm" and [t.dtype for t in kernel.operands] == [FP4, FP4]


class _Gate(Gate):
    """Every linear an FP4 GEMM.

    The pattern in a graph is ``MatMul(x, w)`` with ``w = Transpose(Cast(DequantizeLinear(
    FLOAT4E2M1 initializer, DequantizeLinear(e4m3 initializer, fp32 initializer))))`` and ``x``
    dequantised likewise from both outputs of one ``trt::TRT_FP4DynamicQuantize``, or from codes and
    block scales that are inputs of the graph. TensorRT falls back to bf16 without a word where it
    does not match.
    """

    label = "FP4"
    wanted = "an FP4 GEMM"
    fix = "keep DequantizeLinear, Cast, Transpose and MatMul adjacent in the graph"

    def weight_elements(self, graph: GraphIndex, node: str) -> int:
        activation, weight = graph.matmul(node)
        values, scale = _dequantised(graph, weight, "weight")
        elements = graph.initializer(values, TensorProto.FLOAT4E2M1, "weight")
        block_scale, global_scale = _scale_inputs(graph, scale, "weight")
        graph.initializer(block_scale, TensorProto.FLOAT8E4M3FN, "weight's block scale")
        graph.initializer(global_scale, TensorProto.FLOAT, "weight's global scale")

        values, scale = _dequantised(graph, activation, "activation")
        quantise = graph.producers.get(values)
        if quantise is None and graph.is_input(values):
            block_scale, _ = _scale_inputs(graph, scale, "activation")
            if not graph.quantised_inputs(values, block_scale, BLOCK):
                raise Fault(f"its activation is no input of FP4 codes with a scale for {BLOCK}")
            return elements  # quantised by a kernel before this engine
        if quantise is None or (quantise.domain, quantise.op_type) != QUANTISE:
            raise Fault("its activation is not quantised in this graph")
        block_scale, _ = _scale_inputs(graph, scale, "activation")
        if [values, block_scale] != list(quantise.output):
            raise Fault("its activation is dequantised with the scale of another")
        return elements

    def computes(self, kernel: Kernel) -> bool:
        return is_fp4_gemm(kernel)


_GATE = _Gate()


def _dequantised(graph: GraphIndex, value: str, role: str) -> tuple[str, str]:
    """(values, scale) of the blockwise DequantizeLinear that `value` comes from."""
    node = graph.producers.get(value)
    for _ in range(len(_KEEPS_FP4)):
        if node is None or node.op_type not in _KEEPS_FP4:
            break
        node = graph.producers.get(node.input[0])
    if node is None or node.op_type != "DequantizeLinear":
        if node is None:
            raise Fault(f"its {role} is not dequantised in this graph")
        raise Fault(f"{node.op_type} stands between its {role} and the MatMul")
    attributes = {a.name: a.i for a in node.attribute}
    if attributes.get("block_size") != BLOCK or attributes.get("axis", 1) != -1:
        raise Fault(f"its {role} is not scaled in blocks of {BLOCK} along the last axis")
    return node.input[0], node.input[1]


def _scale_inputs(graph: GraphIndex, value: str, role: str) -> tuple[str, str]:
    node = graph.producers.get(value)
    if node is None or node.op_type != "DequantizeLinear" or len(node.input) < 2:
        raise Fault(f"the block scales of its {role} have no global scale")
    return node.input[0], node.input[1]
