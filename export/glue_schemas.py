"""ONNX schemas of the nodes between two GEMMs whose operands are FP4."""

from __future__ import annotations

from collections.abc import Sequence

from onnx.defs import OpSchema

from fastwan.export.schemas import DOMAIN, VERSION, attribute, optional, parameter, register

_BF16, _FP32, _INT32 = "tensor(bfloat16)", "tensor(float)", "tensor(int32)"
_INT, _FLOAT = OpSchema.AttrType.INT, OpSchema.AttrType.FLOAT

_Y = parameter("y", _BF16, "[1, L, C], raw output of the GEMM")
_BIAS = parameter("bias", _BF16, "[C]")
_HIDDEN = parameter("hidden", _BF16, "[1, L, C], the residual")
_HIDDEN_OUT = parameter("hidden_out", _BF16, "[1, L, C]")
_VECTORS = [
    parameter("gate_or_scale", _FP32, "[C], the gate of a node that has one"),
    parameter("scale_or_shift", _FP32, "[C]"),
    optional("shift", _FP32, "[C], behind a gate"),
]
_FACTOR = optional("y_scale", _FP32, "[], of a node with `scaled`: factor of y, behind all it has")
_SCALED = OpSchema.Attribute("scaled", _INT, "1: the last input is a factor of y", required=False)
_QUANTIZED = [
    parameter("codes", "tensor(float4e2m1)", "[1, L, C], of global scale 1"),
    parameter("scales", "tensor(float8e4m3fn)", "[1, L, C/16]"),
]
_NORM = [
    attribute("eps", _FLOAT, "of the layer norm"),
    attribute("add_one", _INT, "1: the norm is multiplied by 1 + scale"),
]


def glue_schemas() -> tuple[OpSchema, ...]:
    """One schema a kind of node."""
    x = parameter("x", _BF16, "[1, L, C]")
    return (
        _schema(
            "GeluQuantize",
            "Bias, tanh GELU and quantiser.",
            [_Y, _BIAS, _FACTOR],
            _QUANTIZED,
            [_SCALED],
        ),
        _schema("Quantize", "The quantiser of an activation.", [x], _QUANTIZED),
        _schema(
            "ResidualNormQuantize",
            "Bias, gated residual, layer norm, modulation and quantiser.",
            [_Y, _BIAS, _HIDDEN, *_VECTORS, _FACTOR],
            [_HIDDEN_OUT, *_QUANTIZED],
            [*_NORM, _SCALED],
        ),
        _schema(
            "NormQuantize",
            "Layer norm, modulation and quantiser.",
            [x, parameter("scale", _FP32, "[C]"), parameter("shift", _FP32, "[C]")],
            _QUANTIZED,
            _NORM,
        ),
        _schema(
            "ResidualNorm",
            "Bias, gated residual, layer norm and modulation.",
            [_Y, _BIAS, _HIDDEN, *_VECTORS, _FACTOR],
            [parameter("normed", _BF16, "[1, L, C]")],
            [*_NORM, _SCALED],
        ),
        _schema(
            "CrossAttention",
            "Bias, RMS norm, attention to the prompt's keys and quantiser.",
            [
                _Y,
                _BIAS,
                parameter("norm_weight", _BF16, "[C]"),
                parameter("k", _BF16, "[1, Lk, C], Lk a multiple of 64"),
                parameter("v", _BF16, "[1, H, Lk, 128]"),
                parameter("key_bias", _FP32, "[Lk], added to the logits"),
                parameter("key_tiles", _INT32, "[1], tiles of 64 keys that are read"),
                _FACTOR,
            ],
            _QUANTIZED,
            [
                attribute("num_heads", _INT, "H; C = 128 H"),
                attribute("eps", _FLOAT, "of the RMS norm"),
                attribute("scale", _FLOAT, "of the logits"),
                _SCALED,
            ],
        ),
    )


def register_glue() -> None:
    """Make the schemas known to this process."""
    for schema in glue_schemas():
        register(schema)


def _schema(
    name: str,
    doc: str,
    inputs: Sequence[OpSchema.FormalParameter],
    outputs: Sequence[OpSchema.FormalParameter],
    attributes: Sequence[OpSchema.Attribute] = (),
) -> OpSchema:
    return OpSchema(
        name, DOMAIN, VERSION, doc=doc, inputs=inputs, outputs=outputs, attributes=attributes
    )
