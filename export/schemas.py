"""ONNX schemas of the domain ``fastwan``: what the exporter and the checker know its nodes by."""

from __future__ import annotations

from functools import cache

import onnx.defs
from onnx.defs import OpSchema

DOMAIN = "fastwan"
VERSION = 1

_FLOATS = ["tensor(bfloat16)", "tensor(float)", "tensor(float16)"]


def _input(name: str, kind: str, description: str) -> OpSchema.FormalParameter:
    return OpSchema.FormalParameter(name, kind, description)


def _attribute(name: str, kind: OpSchema.AttrType, description: str) -> OpSchema.Attribute:
    return OpSchema.Attribute(name, kind, description, required=True)


def _sage_attention3() -> OpSchema:
    fp32 = "tensor(float)"
    return OpSchema(
        "SageAttention3",
        DOMAIN,
        VERSION,
        doc="FP4 self-attention with its prologue: scale, bias, RMS norm across heads, RoPE.",
        inputs=[
            _input("qkv", "T", "[B, L, 3C], raw output of the merged qkv GEMM"),
            _input("qkv_scale", fp32, "[3], multiplies the q, k and v third"),
            _input("qkv_bias", "T", "[3C]"),
            _input("q_norm", "T", "[C]"),
            _input("k_norm", "T", "[C]"),
            _input("rope_cos", fp32, "[L, D/2]"),
            _input("rope_sin", fp32, "[L, D/2]"),
        ],
        outputs=[_input("out", "T", "[B, L, C]")],
        type_constraints=[("T", _FLOATS, "activations")],
        attributes=[
            _attribute("num_heads", OpSchema.AttrType.INT, "heads, H; C = 128 H"),
            _attribute(
                "num_tokens", OpSchema.AttrType.INT, "true tokens; rows after it are padding"
            ),
            _attribute("eps", OpSchema.AttrType.FLOAT, "of the RMS norms"),
            _attribute("softmax_scale", OpSchema.AttrType.FLOAT, "applied to the logits"),
            _attribute(
                "exact_max", OpSchema.AttrType.INT, "1: no clamp of the first tile's maxima"
            ),
        ],
    )


def _nvfp4_linear() -> OpSchema:
    return OpSchema(
        "NVFP4Linear",
        DOMAIN,
        VERSION,
        doc="x W^T with an NVFP4 weight; replaced by quantise and dequantise nodes before saving.",
        inputs=[
            _input("x", "T", "[..., K]"),
            _input("packed", "tensor(uint8)", "[N, K/2], low nibble first"),
            _input("block_scale", "tensor(float8e4m3fn)", "[N, K/16]"),
            _input("global_scale", "tensor(float)", "[]"),
        ],
        outputs=[_input("y", "T", "[..., N]")],
        type_constraints=[("T", _FLOATS, "activations")],
        attributes=[
            _attribute("quantize_activation", OpSchema.AttrType.INT, "0: leave x as it is"),
        ],
    )


@cache
def register() -> None:
    """Make the schemas known to this process, once."""
    for schema in (_sage_attention3(), _nvfp4_linear()):
        if not onnx.defs.has(schema.name, domain=DOMAIN):
            onnx.defs.register_schema(schema)
