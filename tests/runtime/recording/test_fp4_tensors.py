"""FP4 operands between a region and an engine: bytes of the one, 4-bit numbers of the other."""

from __future__ import annotations

import pytest

from fastwan.errors import BadInput
from fastwan.manifest import TensorSpec
from fastwan.runtime.recording.operations import Cast
from fastwan.runtime.recording.recorder import Recorder
from fastwan.runtime.recording.tensors import allocate

FP4 = "float4_e2m1fn"


def spec(dtype: str, *shape: int) -> TensorSpec:
    return TensorSpec(name="codes", dtype=dtype, shape=shape)


def test_a_tensor_of_codes_takes_half_a_byte_each() -> None:
    assert allocate(spec(FP4, 1, 128, 64)).size == allocate(spec("uint8", 1, 128, 32)).size == 4096


def test_an_engine_reads_the_bytes_that_a_region_wrote() -> None:
    recorder = Recorder()
    recorder.begin("step_0")
    written = allocate(spec("uint8", 1, 128, 32))
    read = recorder.cast(written, spec(FP4, 1, 128, 64), (1, 128, 64))
    assert read.buffer is written.buffer
    assert read.span == written.span
    assert (read.dtype, read.shape) == (FP4, (1, 128, 64))
    assert not [each for each in recorder.stages[0].operations if isinstance(each, Cast)]


@pytest.mark.parametrize(
    ("dtype", "shape", "message"),
    [
        ("uint8", (1, 128, 64), "codes is uint8, not float4_e2m1fn"),
        ("uint8", (1, 64, 64), "has shape"),
        ("bfloat16", (1, 128, 64), "codes is bfloat16, not float4_e2m1fn"),
        ("float8_e4m3fn", (1, 128, 64), "codes is float8_e4m3fn"),
    ],
)
def test_other_bytes_are_refused(dtype: str, shape: tuple[int, ...], message: str) -> None:
    recorder = Recorder()
    recorder.begin("step_0")
    with pytest.raises(BadInput, match=message):
        recorder.cast(allocate(spec(dtype, *shape)), spec(FP4, 1, 128, 64), (1, 128, 64))


def test_an_odd_number_of_codes_fills_no_bytes() -> None:
    with pytest.raises(BadInput, match="unknown dtype"):
        allocate(spec(FP4, 1, 3))
