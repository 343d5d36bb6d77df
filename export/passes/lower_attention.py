"""Lower ``fastwan::SageAttention3`` to standard operators, by tracing torch code in its place."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from fastwan.export import fp8, ops
from fastwan.export.attentions import Form
from fastwan.export.passes.graphs import FASTWAN, inline, required_inputs
from fastwan.export.tracing import trace

_DTYPES = {
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.FLOAT: torch.float32,
}
_INPUTS = ["qkv", "qkv_scale", "qkv_bias", "q_norm", "k_norm", "rope_cos", "rope_sin"]


class _Lowered(nn.Module):
    """What a form computes of the node's inputs, as a module to trace."""

    def __init__(self, form: Form, attributes: dict[str, int | float]) -> None:
        super().__init__()
        self.form = form
        self.attributes: dict[str, Any] = {
            "num_heads": int(attributes["num_heads"]),
            "num_tokens": int(attributes["num_tokens"]),
            "eps": float(attributes["eps"]),
            "softmax_scale": float(attributes["softmax_scale"]),
            "exact_max": bool(attributes["exact_max"]),
        }

    def forward(
        self,
        qkv: Tensor,
        qkv_scale: Tensor,
        qkv_bias: Tensor,
        q_norm: Tensor,
        k_norm: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
    ) -> Tensor:
        inputs = (qkv, qkv_scale, qkv_bias, q_norm, k_norm, rope_cos, rope_sin)
        return self.form.compute(*inputs, **self.attributes)


def lower_attention(model: ir.Model, form: Form) -> tuple[ir.Model, bool]:
    """Replace every attention node by standard operators.

    Requires: static shapes at the node.
    Ensures: no ``SageAttention3`` node is left; the outputs keep their names and types.

    Args:
        model: changed in place.
        form: what they are to compute.
    """
    traced: dict[object, ir.Model] = {}
    changed = False
    for node in list(model.graph):
        if node.domain != FASTWAN or node.op_type != "SageAttention3":
            continue
        inputs = required_inputs(node)
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        types = tuple(map(_type, inputs))
        key = (types, tuple(sorted(attributes.items())))
        if key not in traced:
            traced[key] = _trace(form, attributes, types)
        inline(node, traced[key], inputs, f"{node.outputs[0].name}/{form.name}.")
        changed = True
    return model, changed


def _type(value: ir.Value) -> tuple[torch.dtype, tuple[int, ...]]:
    assert value.shape is not None
    assert value.dtype is not None
    return _DTYPES[value.dtype], tuple(value.shape.numpy())


def _trace(
    form: Form,
    attributes: dict[str, int | float],
    types: tuple[tuple[torch.dtype, tuple[int, ...]], ...],
) -> ir.Model:
    # Real tensors, never written and so never resident: constants that the traced code makes
    # would have no values among fake ones.
    args = tuple(torch.empty(shape, dtype=dtype) for dtype, shape in types)
    return trace(
        _Lowered(form, attributes).eval(),
        args,
        name=f"attention_{form.name}",
        inputs=_INPUTS,
        outputs=["out"],
        translations=ops.translations() | fp8.translations(),
    )
