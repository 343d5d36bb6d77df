"""The safetensors reader refuses every malformed header, and the writer's files are standard."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

from fastwan.errors import BadInput
from fastwan.export.checkpoint.safetensors_io import (
    MAX_HEADER_BYTES,
    SafetensorsWriter,
    TensorFile,
    TensorSpec,
)


def blob(header: Any, data: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def good() -> dict[str, Any]:
    return {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    }


def changed(name: str, **fields: Any) -> dict[str, Any]:
    header = good()
    header[name] = {**header[name], **fields}
    return header


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    def write_bytes(data: bytes) -> Path:
        path = tmp_path / "file.safetensors"
        path.write_bytes(data)
        return path

    return write_bytes


def test_a_good_file_is_read(write: Callable[[bytes], Path]) -> None:
    data = torch.arange(6, dtype=torch.float32).numpy().tobytes() + bytes(8)
    file = TensorFile(write(blob(good(), data)))
    assert file.names == ("a", "b")
    assert file.metadata == {"format": "pt"}
    assert file.info("b").dtype == torch.bfloat16
    assert torch.equal(file.read("a"), torch.arange(6.0).reshape(2, 3))
    assert torch.equal(file.read_rows("a", 1, 2), torch.tensor([[3.0, 4.0, 5.0]]))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (changed("a", dtype="F33"), "unknown dtype 'F33'.*'a'"),
        (changed("a", dtype=[1]), "unknown dtype"),
        (changed("a", shape=[2, -3]), "shape is not"),
        (changed("a", shape=[2, 3.0]), "shape is not"),
        (changed("a", shape=[True, 6]), "shape is not"),
        (changed("a", shape=[1] * 9), "shape is not"),
        (changed("a", shape=[1 << 41, 0]), "shape is not"),
        (changed("a", shape=6), "shape is not"),
        (changed("a", shape=[2, 4]), "takes 32 bytes, data_offsets give '24'.*'a'"),
        (changed("a", data_offsets=[0, 20]), "takes 24 bytes"),
        (changed("a", data_offsets=[24, 0]), "data_offsets are not"),
        (changed("a", data_offsets=[-24, 0]), "data_offsets are not"),
        (changed("a", data_offsets=[0, 24, 24]), "data_offsets are not"),
        (changed("b", data_offsets=[16, 24]), "overlaps.*'b'"),
        (changed("b", data_offsets=[25, 33]), "leaves a gap.*'b'|beyond the end.*'b'"),
        (changed("b", data_offsets=[1 << 70, (1 << 70) + 8]), "beyond the end.*'b'"),
        (changed("a", extra=1), "exactly dtype, shape and data_offsets"),
        ({**good(), "c": []}, "exactly dtype, shape and data_offsets.*'c'"),
        ({**good(), "c\ud800": good()["a"]}, "half a surrogate pair"),
        ({**good(), "c\x07": good()["a"]}, "name is not printable"),
        ({**good(), "__metadata__": {"a": 1}}, "table of strings"),
        ({**good(), "__metadata__": None}, "table of strings"),
        ({"a": good()["a"]}, "8 bytes follow"),
        ([1], "does not begin with"),
        (b"{", "not valid JSON"),
        (b'{"a":\xff}', "not valid JSON"),
        (b'{"a":NaN}', "NaN is not JSON"),
        (b'{"a":' * 100_000, "not valid JSON"),
        (b'{"a":' + b"9" * 5000 + b"}", "a number of 5000 characters"),
        (b'{"a":1,"a":1}', "'a' is given twice"),
    ],
)
def test_a_bad_header_is_refused(write: Callable[[bytes], Path], header: Any, message: str) -> None:
    path = write(blob(header, bytes(32)))
    with pytest.raises(BadInput, match=message) as caught:
        TensorFile(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "too short"),
        (bytes(7), "too short"),
        (blob(good(), bytes(32), length=MAX_HEADER_BYTES + 1), "beyond 100000000"),
        (blob(good(), bytes(32), length=1000), "beyond the end of the file"),
        (blob(good(), bytes(31)), "truncated.*'b'"),
        (blob(good(), bytes(33)), "1 bytes follow the last tensor"),
    ],
)
def test_a_file_of_the_wrong_length_is_refused(
    write: Callable[[bytes], Path], data: bytes, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        TensorFile(write(data))


def test_a_file_that_shrinks_after_it_was_opened_is_refused(
    write: Callable[[bytes], Path],
) -> None:
    path = write(blob(good(), bytes(32)))
    file = TensorFile(path)
    assert file.read("b").tolist() == [0.0] * 4
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadInput, match=r"ended early.*'b'"):
        file.read("b")


def test_missing_files_tensors_and_rows_are_refused(
    write: Callable[[bytes], Path], tmp_path: Path
) -> None:
    file = TensorFile(write(blob(good(), bytes(32))))
    with pytest.raises(BadInput, match=r"tensor is missing.*'c'"):
        file.read("c")
    assert file.read_rows("b", 0, 4).shape == (4,)
    with pytest.raises(BadInput, match="rows 0:5 are outside"):
        file.read_rows("b", 0, 5)
    with pytest.raises(BadInput, match="No such file"):
        TensorFile(tmp_path / "none.safetensors")


def _survives(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        file = TensorFile(path)
        for name in file.names:
            file.read(name)
    except BadInput:
        pass


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(header=st.binary(max_size=200), data=st.binary(max_size=40), begin=st.booleans())
def test_random_bytes_never_raise_anything_but_bad_input(
    tmp_path_factory: pytest.TempPathFactory, header: bytes, data: bytes, begin: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    _survives(path, header if begin else blob(b"{" + header, data))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=6,
)
_ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "BOOL", "F8_E4M3", "I64"]) | _JSON,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | _JSON,
        "data_offsets": st.lists(st.integers(-1, 40), min_size=2, max_size=2) | _JSON,
    }
)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    header=st.dictionaries(
        st.text(max_size=3) | st.just("__metadata__"), _ENTRY | _JSON, max_size=3
    ),
    data=st.binary(max_size=40),
)
def test_random_entries_never_raise_anything_but_bad_input(
    tmp_path_factory: pytest.TempPathFactory, header: dict[str, Any], data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    _survives(path, blob(header, data))


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(at=st.integers(0, 200), length=st.integers(0, 3), bytes_=st.binary(max_size=3))
def test_a_good_file_with_some_bytes_replaced_never_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, at: int, length: int, bytes_: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    data = blob(good(), bytes(32))
    _survives(path, data[:at] + bytes_ + data[at + length :])


def _tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(6, 5, generator=generator)
    return {
        "z.weight": values,
        "a.weight": values.bfloat16(),
        "m.half": values.half(),
        "b.weight": values.bfloat16()[:, :3].contiguous(),
        "scale": values.to(torch.float8_e4m3fn),
        "wide": values.double(),
        "bytes": torch.arange(7, dtype=torch.uint8),
        "index": torch.arange(5),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "näme": torch.ones(1),
    }


def test_files_of_the_library_are_read(tmp_path: Path) -> None:
    tensors = _tensors()
    save_file(tensors, tmp_path / "library.safetensors", {"format": "pt"})
    file = TensorFile(tmp_path / "library.safetensors")
    assert set(file.names) == set(tensors)
    for name, tensor in tensors.items():
        read = file.read(name)
        assert read.dtype == tensor.dtype
        assert read.shape == tensor.shape
        assert read.flatten().view(torch.uint8).equal(tensor.flatten().view(torch.uint8)), name
    assert torch.equal(file.read_rows("z.weight", 2, 5), tensors["z.weight"][2:5])


def test_written_files_have_the_bytes_of_the_library(tmp_path: Path) -> None:
    tensors = _tensors()
    path = tmp_path / "ours.safetensors"
    specs = {name: TensorSpec(t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    with SafetensorsWriter(path, specs) as writer:
        for name in writer.names:
            writer.write(name, tensors[name])
    assert path.stat().st_size == writer.total_bytes
    assert path.read_bytes() == save(tensors, {"format": "pt"})
    assert struct.unpack("<Q", path.read_bytes()[:8])[0] % 8 == 0
    assert torch.equal(load_file(path)["wide"], tensors["wide"])


def test_the_writer_refuses_what_does_not_match_its_specs(tmp_path: Path) -> None:
    specs = {name: TensorSpec(torch.float32, (2,)) for name in ("a", "b")}

    def write(names: str, tensor: torch.Tensor) -> None:
        with SafetensorsWriter(tmp_path / "file.safetensors", specs) as writer:
            for name in names:
                writer.write(name, tensor)

    write("ab", torch.ones(2))
    with pytest.raises(BadInput, match=r"out of order.*b"):
        write("b", torch.ones(2))
    with pytest.raises(BadInput, match=r"left out.*b"):
        write("a", torch.ones(2))
    with pytest.raises(BadInput, match=r"does not match its spec.*a"):
        write("a", torch.ones(3))
    with pytest.raises(BadInput, match=r"does not match its spec.*a"):
        write("a", torch.ones(2).half())
    with (
        pytest.raises(BadInput, match=r"4 bytes written of 8.*a"),
        SafetensorsWriter(tmp_path / "file.safetensors", specs) as writer,
    ):
        writer.write_bytes("a", [bytes(4)])
