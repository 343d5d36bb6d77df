"""The table of number formats against the libraries whose names it holds."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastwan.dtypes import DTYPES, ITEM_BYTES, LAYER_BITS, TENSORRT_NAMES, DType, packed_bytes


def numpy_type(dtype: DType) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, dtype.name, dtype.name))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_onnx_and_numpy_mean_the_same_format(dtype: DType) -> None:
    number = onnx.TensorProto.DataType.Value(dtype.onnx)
    assert onnx.helper.tensor_dtype_to_np_dtype(number) == numpy_type(dtype)
    if dtype.bits >= 8:
        assert numpy_type(dtype).itemsize * 8 == dtype.bits
        assert ITEM_BYTES[dtype.name] * 8 == dtype.bits
    else:
        # Packed in files, a byte each in memory.
        assert (dtype.bits, numpy_type(dtype).itemsize) == (4, 1)
        assert dtype.name not in ITEM_BYTES


def test_no_name_stands_for_two_formats() -> None:
    for names in (
        [dtype.name for dtype in DTYPES],
        [dtype.onnx for dtype in DTYPES],
        [dtype.tensorrt for dtype in DTYPES if dtype.tensorrt],
        [word for dtype in DTYPES for word in dtype.layer],
    ):
        assert len(set(names)) == len(names) > 5
    assert (LAYER_BITS["FP4E2M1"], LAYER_BITS["Half"]) == (4, 16)
    assert TENSORRT_NAMES["BF16"] == "bfloat16"


@pytest.mark.trt
def test_tensorrt_has_the_names() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    assert TENSORRT_NAMES.keys() <= trt.DataType.__members__.keys()
    for name, member in trt.DataType.__members__.items():
        if name in TENSORRT_NAMES:
            (bits,) = (dtype.bits for dtype in DTYPES if dtype.tensorrt == name)
            assert member.itemsize * 8 == bits or bits == 4


@given(st.integers(0, 1 << 40), st.sampled_from(sorted({dtype.bits for dtype in DTYPES})))
def test_packed_bytes_hold_the_elements_and_not_one_more(elements: int, bits: int) -> None:
    size = packed_bytes(elements, bits)
    assert size * 8 >= elements * bits > (size - 1) * 8
