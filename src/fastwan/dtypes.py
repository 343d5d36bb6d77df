"""Number formats: their size, and what ONNX and TensorRT call them.

Manifests and the runtime use numpy's names, those of ml_dtypes included.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DType:
    """One number format.

    Attributes:
        name: numpy's or ml_dtypes' name.
        bits: of one element.
        onnx: name in ONNX's ``TensorProto.DataType``.
        tensorrt: name in TensorRT's ``DataType``; empty where builders here know none.
        layer: words for it in the layer records that TensorRT logs.
    """

    name: str
    bits: int
    onnx: str
    tensorrt: str = ""
    layer: tuple[str, ...] = ()


DTYPES = (
    DType("float64", 64, "DOUBLE"),
    DType("float32", 32, "FLOAT", "FLOAT", ("Float",)),
    DType("float16", 16, "FLOAT16", "HALF", ("Half",)),
    DType("bfloat16", 16, "BFLOAT16", "BF16", ("BFloat16",)),
    DType("float8_e4m3fn", 8, "FLOAT8E4M3FN", "FP8", ("FP8", "FP8E4M3")),
    DType("float8_e5m2", 8, "FLOAT8E5M2"),
    DType("float8_e8m0fnu", 8, "FLOAT8E8M0", "", ("E8M0",)),
    DType("float4_e2m1fn", 4, "FLOAT4E2M1", "FP4", ("FP4E2M1", "FP4")),
    DType("int64", 64, "INT64", "INT64", ("Int64",)),
    DType("int32", 32, "INT32", "INT32", ("Int32",)),
    DType("int16", 16, "INT16"),
    DType("int8", 8, "INT8", "INT8", ("Int8",)),
    DType("int4", 4, "INT4", "", ("Int4",)),
    DType("uint64", 64, "UINT64"),
    DType("uint32", 32, "UINT32"),
    DType("uint16", 16, "UINT16"),
    DType("uint8", 8, "UINT8", "UINT8", ("UInt8",)),
    DType("uint4", 4, "UINT4"),
    DType("bool", 8, "BOOL", "BOOL", ("Bool",)),
)

LAYER_BITS = {word: dtype.bits for dtype in DTYPES for word in dtype.layer}
"""By a layer record's word."""

TENSORRT_NAMES = {dtype.tensorrt: dtype.name for dtype in DTYPES if dtype.tensorrt}
"""numpy's name by TensorRT's."""

ITEM_BYTES = {dtype.name: dtype.bits // 8 for dtype in DTYPES if dtype.bits >= 8} | {"float": 4}
"""By numpy's name, of formats whose elements are whole bytes; ``float`` is what the specs of ONNX
graphs call fp32."""

PAIRED = frozenset({"float4_e2m1fn"})
"""numpy's names of formats that engines take two a byte, the first in the low nibble."""


def packed_bytes(elements: int, bits: int) -> int:
    """Bytes that hold `elements` of `bits` each without gaps; the last byte may be part empty."""
    return -(-elements * bits // 8)
