"""ONNX schemas of the domain ``fastwan``: what the exporter and the checker know its nodes by."""

from __future__ import annotations

from collections.abc import Sequence

import onnx.defs
from onnx.defs import OpSchema

DOMAIN = "fastwan"
VERSION = 1

FLOATS = ["tensor(bfloat16)", "tensor(float)", "tensor(float16)"]


def parameter(name: str, kind: str, description: str) -> OpSchema.FormalParameter:
    return OpSchema.FormalParameter(name, kind, description)


def optional(name: str, kind: str, description: str) -> OpSchema.FormalParameter:
    """An input that a node need not have; those before it in the list it has."""
    option = OpSchema.FormalParameterOption.Optional
    return OpSchema.FormalParameter(name, kind, description, param_option=option)


def attribute(name: str, kind: OpSchema.AttrType, description: str) -> OpSchema.Attribute:
    return OpSchema.Attribute(name, kind, description, required=True)


def sage_attention3() -> OpSchema:
    return _self_attention(
        "SageAttention3",
        "FP4 self-attention with its prologue: scale, bias, RMS norm across heads, RoPE.",
        attribute("exact_max", OpSchema.AttrType.INT, "1: no clamp of the first tile's maxima"),
    )


def sage_attention2() -> OpSchema:
    row_scale = optional(
        "row_scale", "tensor(float)", "[B, L, 1], of a node with `row_scaled`: factor of qkv's rows"
    )
    row_scaled = OpSchema.Attribute(
        "row_scaled", OpSchema.AttrType.INT, "1: the last input is row_scale", required=False
    )
    return _self_attention(
        "SageAttention2",
        "Self-attention in int8 and e4m3 with its prologue: scale, bias, RMS norm across heads, "
        "RoPE.",
        attribute("per_warp", OpSchema.AttrType.INT, "1: a scale for 32 queries and 64 keys"),
        inputs=[row_scale],
        attributes=[row_scaled],
    )


def _self_attention(
    name: str,
    doc: str,
    flag: OpSchema.Attribute,
    *,
    inputs: Sequence[OpSchema.FormalParameter] = (),
    attributes: Sequence[OpSchema.Attribute] = (),
) -> OpSchema:
    """A node between the qkv and the output GEMM.

    Args:
        inputs: behind those that every such node has.
        attributes: likewise.
    """
    fp32 = "tensor(float)"
    return OpSchema(
        name,
        DOMAIN,
        VERSION,
        doc=doc,
        inputs=[
            parameter("qkv", "T", "[B, L, 3C], raw output of the merged qkv GEMM"),
            parameter("qkv_scale", fp32, "[3], multiplies the q, k and v third"),
            parameter("qkv_bias", "T", "[3C]"),
            parameter("q_norm", "T", "[C]"),
            parameter("k_norm", "T", "[C]"),
            parameter("rope_cos", fp32, "[L, D/2]"),
            parameter("rope_sin", fp32, "[L, D/2]"),
            *inputs,
        ],
        outputs=[parameter("out", "T", "[B, L, C]")],
        type_constraints=[("T", FLOATS, "activations")],
        attributes=[
            attribute("num_heads", OpSchema.AttrType.INT, "heads, H; C = 128 H"),
            attribute(
                "num_tokens", OpSchema.AttrType.INT, "true tokens; rows after it are padding"
            ),
            attribute("eps", OpSchema.AttrType.FLOAT, "of the RMS norms"),
            attribute("softmax_scale", OpSchema.AttrType.FLOAT, "applied to the logits"),
            flag,
            *attributes,
        ],
    )


def register(schema: OpSchema) -> None:
    """Make a schema known to this process, if it is not."""
    if not onnx.defs.has(schema.name, domain=DOMAIN):
        onnx.defs.register_schema(schema)
