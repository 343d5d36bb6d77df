"""Lower ``fastwan::SageAttention3`` to standard operators, by tracing torch code in its place."""

from __future__ import annotations

from functools import partial
from typing import Literal

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastwan.export import ops
from fastwan.export.models.layers import rms_norm
from fastwan.export.onnx_io import trace
from fastwan.export.passes.graphs import FASTWAN, inline, required_inputs
from fastwan.plugins import reference

Attention = Literal["native", "fp4", "exact"]
_DTYPES = {
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.FLOAT: torch.float32,
}
_INPUTS = ["qkv", "qkv_scale", "qkv_bias", "q_norm", "k_norm", "rope_cos", "rope_sin"]


def _unrounded(x: Tensor) -> Tensor:
    return x


class _Lowered(nn.Module):
    """One of the three forms of the attention node as a module to trace."""

    def __init__(self, kind: Attention, attributes: dict[str, int | float]) -> None:
        super().__init__()
        self.kind = kind
        self.num_tokens = int(attributes["num_tokens"])
        self.softmax_scale = float(attributes["softmax_scale"])
        self.num_heads = int(attributes["num_heads"])
        self.eps = float(attributes["eps"])
        self.exact_max = bool(attributes["exact_max"])

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
        if self.kind == "native":
            return self._native(qkv, qkv_scale, qkv_bias, q_norm, k_norm, rope_cos, rope_sin)
        if self.kind == "fp4":
            node = partial(reference.attention_node, exact_max=self.exact_max)
            floats = (qkv, qkv_scale, qkv_bias, q_norm, k_norm)
        else:
            node = partial(reference.attention_node_fp32)
            floats = (qkv.float(), qkv_scale, qkv_bias.float(), q_norm.float(), k_norm.float())
        return node(
            *floats,
            rope_cos,
            rope_sin,
            num_heads=self.num_heads,
            num_tokens=self.num_tokens,
            eps=self.eps,
            softmax_scale=self.softmax_scale,
        ).to(qkv.dtype)

    def _native(
        self,
        qkv: Tensor,
        qkv_scale: Tensor,
        qkv_bias: Tensor,
        q_norm: Tensor,
        k_norm: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
    ) -> Tensor:
        """The reference's prologue with sums in the order of the builder's choice, then SDPA."""
        batch, length, channels = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        heads = []
        for index, norm in enumerate((q_norm, k_norm, None)):
            third = slice(index * channels, (index + 1) * channels)
            x = (qkv[..., third].float() * qkv_scale[index]).to(qkv.dtype) + qkv_bias[third]
            if norm is not None:
                x = rms_norm(x, norm, self.eps)
            x = x.reshape(batch, length, self.num_heads, -1)
            if norm is not None:
                x = reference.rope(x.float(), rope_cos, rope_sin, _unrounded).to(qkv.dtype)
            heads.append(x.transpose(1, 2))
        q, k, v = heads
        # Keys past the last token are left out; queries there make rows that nobody reads.
        k, v = k[:, :, : self.num_tokens], v[:, :, : self.num_tokens]
        out = F.scaled_dot_product_attention(q, k, v, scale=self.softmax_scale)
        return out.transpose(1, 2).reshape(batch, length, channels)


def lower_attention(model: ir.Model, kind: Attention = "native") -> tuple[ir.Model, bool]:
    """Replace every attention node by standard operators.

    Requires: static shapes at the node.
    Ensures: no ``SageAttention3`` node is left; the outputs keep their names and types.

    Args:
        model: changed in place.
        kind: ``native``, norm, RoPE and a bf16 ``Attention`` operator, for engines without the
            plugin; ``fp4``, the tile-exact reference of the kernel; ``exact``, fp32 attention.
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
            traced[key] = _trace(kind, attributes, types)
        inline(node, traced[key], inputs, f"{node.outputs[0].name}/{kind}.")
        changed = True
    return model, changed


def _type(value: ir.Value) -> tuple[torch.dtype, tuple[int, ...]]:
    assert value.shape is not None
    assert value.dtype is not None
    return _DTYPES[value.dtype], tuple(value.shape.numpy())


def _trace(
    kind: Attention,
    attributes: dict[str, int | float],
    types: tuple[tuple[torch.dtype, tuple[int, ...]], ...],
) -> ir.Model:
    # Real tensors, never written and so never resident: constants that the traced code makes
    # would have no values among fake ones.
    args = tuple(torch.empty(shape, dtype=dtype) for dtype, shape in types)
    return trace(
        _Lowered(kind, attributes).eval(),
        args,
        name=f"attention_{kind}",
        inputs=_INPUTS,
        outputs=["out"],
        translations=ops.translations(),
    )
