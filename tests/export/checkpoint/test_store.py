"""Stores: shards, pickles, finiteness, renaming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fastwan.errors import BadInput
from fastwan.export.checkpoint.folders import open_folder
from fastwan.export.checkpoint.store import TensorStore, open_store

INDEX = "model.safetensors.index.json"


def _tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(4, 6, generator=generator) for name in ("a", "b", "c")}


def _shard(folder: Path, weight_map: dict[str, Any] | None = None) -> Path:
    tensors = _tensors()
    folder.mkdir(exist_ok=True)
    save_file({"a": tensors["a"]}, folder / "model-1.safetensors")
    save_file({"b": tensors["b"], "c": tensors["c"]}, folder / "model-2.safetensors")
    two = "model-2.safetensors"
    full = {"a": "model-1.safetensors", "b": two, "c": two, **(weight_map or {})}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": full}))
    return folder / INDEX


def _same(store: TensorStore, tensors: dict[str, torch.Tensor]) -> bool:
    return set(store.names()) == set(tensors) and all(
        torch.equal(store.read(name), tensor) for name, tensor in tensors.items()
    )


def test_shards_single_files_and_pickles_hold_the_same_tensors(tmp_path: Path) -> None:
    tensors = _tensors()
    save_file(tensors, tmp_path / "model.safetensors")
    torch.save(tensors, tmp_path / "model.pth")
    _shard(tmp_path / "sharded")
    for store in (
        open_store(tmp_path / "model.safetensors"),
        open_store(tmp_path / "model.pth"),
        open_folder(tmp_path, "model", []),
        open_folder(tmp_path / "sharded", "model", []),
    ):
        assert _same(store, tensors)
        assert store.shape("b") == (4, 6)
        assert store.dtype("b") == torch.float32
        assert store.nbytes("b") == 96
        assert torch.equal(store.read_rows("b", 1, 3), tensors["b"][1:3])
        with pytest.raises(BadInput, match=r"rows 3:5 are outside.*b"):
            store.read_rows("b", 3, 5)
        with pytest.raises(BadInput, match="tensor d is missing"):
            store.read("d")
    assert len(open_folder(tmp_path / "sharded", "model", []).files) == 2


def test_what_is_read_belongs_to_the_caller(tmp_path: Path) -> None:
    torch.save(_tensors(), tmp_path / "model.pth")
    store = open_store(tmp_path / "model.pth")
    store.read("a").zero_()
    store.read_rows("a", 0, 2).zero_()
    assert torch.equal(store.read("a"), _tensors()["a"])


@pytest.mark.parametrize(
    "shard",
    ["../model-2.safetensors", "/tmp/model-2.safetensors", "x/../../model-2.safetensors",
     "..\\model-2.safetensors", "model-2.safetensors\0", "model-2.bin", "", 3, None],
)  # fmt: skip
def test_an_index_must_stay_in_its_folder(tmp_path: Path, shard: Any) -> None:
    save_file({"b": torch.ones(1), "c": torch.ones(1)}, tmp_path / "model-2.safetensors")
    assert len(open_store(_shard(tmp_path / "inner"))) == 3
    with pytest.raises(BadInput, match=r"outside the index's folder.*index\.json: b"):
        open_store(_shard(tmp_path / "inner", {"b": shard}))


def test_a_name_that_no_file_can_have_is_of_a_missing_shard(tmp_path: Path) -> None:
    assert len(open_store(_shard(tmp_path / "inner"))) == 3
    with pytest.raises(BadInput, match="shard is missing"):
        open_store(_shard(tmp_path / "inner", {"b": f"{'x' * 5000}.safetensors"}))


def test_symbolic_links_are_followed(tmp_path: Path) -> None:
    index = _shard(tmp_path / "inner")
    blob = (index.parent / "model-2.safetensors").rename(tmp_path / "blob")
    (index.parent / "model-2.safetensors").symlink_to(blob)
    assert _same(open_store(index), _tensors())


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"d": "model-1.safetensors"}, "not in its shard model-1.*: d"),
        ({"a": "model-2.safetensors"}, "not in its shard model-2.*: a"),
        ({"d": "model-3.safetensors"}, "shard is missing.*model-3"),
        ({"b": "model-1.safetensors"}, "does not name for it.*: b|not in its shard.*: b"),
    ],
)
def test_an_index_that_disagrees_with_its_shards_is_refused(
    tmp_path: Path, weight_map: dict[str, str], message: str
) -> None:
    assert len(open_store(_shard(tmp_path))) == 3
    with pytest.raises(BadInput, match=message):
        open_store(_shard(tmp_path, weight_map))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": "x", "a": "y"}}']
)
def test_a_malformed_index_is_refused(tmp_path: Path, text: str) -> None:
    index = _shard(tmp_path)
    index.write_text(text)
    with pytest.raises(BadInput, match="index"):
        open_store(index)


class _Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("unpickled",))


@pytest.mark.parametrize(
    "content",
    [
        {"a": _Payload()},
        [torch.ones(1)],
        {"a": 1},
        {},
        {1: torch.ones(1)},
        {"a": torch.ones(2, 2).to_sparse()},
    ],
)
def test_a_pickle_with_anything_but_tensors_is_refused(
    tmp_path: Path, content: object, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "good.pth")
    assert open_store(tmp_path / "good.pth").read("a").item() == 1
    torch.save(content, tmp_path / "bad.pth")
    with pytest.raises(BadInput, match=r"bad\.pth"):
        open_store(tmp_path / "bad.pth")
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x80\x02.", bytes(100)])
def test_a_damaged_pickle_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "bad.pth").write_bytes(data)
    with pytest.raises(BadInput, match="weights_only=True"):
        open_store(tmp_path / "bad.pth")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_inf_are_refused_where_they_are_read(
    tmp_path: Path, dtype: torch.dtype, value: float
) -> None:
    tensor = torch.full((8, 40), torch.finfo(dtype).max, dtype=dtype)
    save_file({"good": tensor}, tmp_path / "good.safetensors")
    assert torch.equal(open_store(tmp_path / "good.safetensors").read("good"), tensor)
    tensor[5, 7] = value
    save_file({"bad": tensor}, tmp_path / "bad.safetensors")
    store = open_store(tmp_path / "bad.safetensors")
    with pytest.raises(BadInput, match=r"NaN or Inf.*bad\.safetensors: bad"):
        store.read("bad")
    with pytest.raises(BadInput, match="NaN or Inf"):
        store.read_rows("bad", 5, 6)
    assert store.read_rows("bad", 0, 5).shape == (5, 40)


def test_two_names_for_one_tensor_are_refused(tmp_path: Path) -> None:
    save_file(_tensors(), tmp_path / "model.safetensors")
    store = open_store(tmp_path / "model.safetensors")
    assert store.renamed(str.upper).names() == ("A", "B", "C")
    assert store.without(lambda name: name == "a").names() == ("b", "c")
    with pytest.raises(BadInput, match=r"b and a are both x|a and b are both x"):
        store.renamed(lambda name: "x" if name in "ab" else name)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="weight file is missing"):
        open_store(tmp_path / "model.safetensors")
    with pytest.raises(BadInput, match=r"neither model\.safetensors nor"):
        open_folder(tmp_path, "model", [])
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(BadInput, match="unknown kind of weight file"):
        open_store(tmp_path / "model.bin")
