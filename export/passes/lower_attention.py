"""Lower ``fastwan::SageAttention3`` to standard operators, by tracing torch code in its place."""

from __future__ import annotations

from functools import partial
from typing import Literal

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastwan.export import ops
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
        """The reference's prologue with sums in the order of the builder's choice, then SDPA.

        q and k go through norm and RoPE as one tensor, and the builder joins v: two kernels over
        the GEMM's output make all three.
        """
        batch, length, channels = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        thirds, dtype = (batch, -1, 3, channels), qkv.dtype
        factor, bias = qkv_scale.reshape(3, 1), qkv_bias.reshape(3, channels)
        # The mean of squares has a path of its own from the GEMM's output, over all rows: were any
        # value of it the other kernel's too, the builder would store it in fp32.
        x = (qkv.reshape(thirds).float() * factor).to(dtype) + bias
        mean = (x.float() * x.float()).mean(-1, keepdim=True)
        # Keys past the last token are left out, and with them the queries: one shape for all.
        tokens = self.num_tokens
        x = (qkv[:, :tokens].reshape(thirds).float() * factor).to(dtype) + bias
        scale = torch.rsqrt(mean[:, :tokens, :2] + self.eps)
        pairs = (x[:, :, :2].float() * scale).to(dtype) * torch.stack([q_norm, k_norm])
        pairs = pairs.reshape(batch, tokens, 2, self.num_heads, -1, 2).float()
        cos, sin = rope_cos[:tokens, None, None], rope_sin[:tokens, None, None]
        even, odd = pairs[..., 0], pairs[..., 1]
        rotated = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
        rotated = rotated.reshape(batch, tokens, 2, self.num_heads, -1).to(dtype)
        q, k = rotated.permute(2, 0, 3, 1, 4).unbind()
        v = x[:, :, 2].reshape(batch, tokens, self.num_heads, -1).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, k, v, scale=self.softmax_scale)
        out = out.transpose(1, 2).reshape(batch, tokens, channels)
        return F.pad(out, (0, 0, 0, length - tokens))


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
