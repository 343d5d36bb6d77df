"""Lower a graph to standard operators that ONNX Runtime has on a CPU: the CPU reference."""

from __future__ import annotations

import onnx_ir as ir

from fastwan.errors import BadInput
from fastwan.export.attentions import Form
from fastwan.export.passes.graphs import FASTWAN, TRT_DOMAIN
from fastwan.export.passes.lower_attention import lower_attention
from fastwan.export.passes.lower_precision import lower_precision
from fastwan.export.recipes import IMPLEMENTED


def lower_for_onnxruntime(
    model: ir.Model,
    *,
    quantize_activations: bool = True,
    attention: Form | None = None,
    rounding: bool = True,
) -> tuple[ir.Model, bool]:
    """Replace what ONNX Runtime's CPU provider lacks by standard operators of the same numerics.

    A quantised weight stays in its data file as it is. Each recipe lowers its own linears.

    Requires: linears as `Recipe.expand` leaves them.
    Ensures: only standard operators; graph inputs and outputs fp32 in place of bf16.

    Args:
        model: changed in place.
        quantize_activations: false leaves the activations of the linears unquantised.
        attention: what attention nodes compute; None where there are none.
        rounding: false computes in fp32 throughout.

    Raises:
        BadInput: a node that none of them lowers.
    """
    changed = attention is not None and lower_attention(model, attention)[1]
    graph = model.graph
    for recipe in IMPLEMENTED.values():
        changed = recipe.lower(model, quantize_activations=quantize_activations) or changed
    _remove_unused(graph)
    left = [n for n in graph if n.domain in (FASTWAN, TRT_DOMAIN) or _is_fp4(n)]
    if left:
        raise BadInput(
            f"cannot lower {left[0].op_type} for ONNX Runtime",
            where=str(left[0].name),
            fix="it must be that of an exported linear or attention",
        )
    for domain in (FASTWAN, TRT_DOMAIN):
        graph.opset_imports.pop(domain, None)
    return model, lower_precision(model, rounding=rounding)[1] or changed


def _is_fp4(node: ir.Node) -> bool:
    return any(v is not None and v.dtype == ir.DataType.FLOAT4E2M1 for v in node.inputs)


def _remove_unused(graph: ir.Graph) -> None:
    outputs = set(graph.outputs)
    for node in reversed(list(graph)):
        if not any(value.uses() or value in outputs for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and value not in outputs:
            del graph.initializers[name]
