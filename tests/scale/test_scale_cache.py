"""The cache of the export: what is kept, what is made again, what a killed build leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastwan.config import DiTConfig, VideoShape
from fastwan.content_cache import ContentCache
from fastwan.export import dit_onnx
from fastwan.export.attentions.sage3 import Sage3
from fastwan.export.cache import ExportCache, content_key, tensor_bytes
from fastwan.export.checkpoint.reader import Checkpoint
from fastwan.export.dit_onnx import export_dit
from fastwan.export.onnx_io import TensorSource
from fastwan.export.recipes import NVFP4
from fastwan.plugins.nvfp4 import PackedWeight, quantize_weight

LINEARS = 8  # groups of a block that are quantised: k, v, qkv, out, q, out, fc1, fc2
SHAPE = VideoShape(32, 32, 5)


class Counting:
    """A quantiser that counts its calls and can be killed after some."""

    def __init__(self, survive: int | None = None) -> None:
        self.calls = 0
        self._survive = survive

    def __call__(self, weight: Tensor, activation_global_scale: float) -> PackedWeight:
        if self._survive is not None and self.calls >= self._survive:
            raise KeyboardInterrupt
        self.calls += 1
        return quantize_weight(weight)


@pytest.fixture
def export(
    tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Path, dict[str, str]]]:
    monkeypatch.setattr(dit_onnx, "workers", lambda: 1)
    cache = ExportCache(tmp_path / "cache")
    config = replace(tiny.dit_config, num_layers=1)

    def run(
        name: str,
        quantizer: Counting,
        *,
        shape: VideoShape = SHAPE,
        source: TensorSource = tiny.transformer,
        config: DiTConfig = config,
    ) -> tuple[Path, dict[str, str]]:
        monkeypatch.setattr("fastwan.export.quantize.convert_linear", quantizer)
        folder = tmp_path / name
        folder.mkdir()
        _, digests = export_dit(
            source, config, shape, NVFP4(), folder, attention=Sage3(), cache=cache
        )
        return folder, digests

    return run


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


Export = Callable[..., tuple[Path, dict[str, str]]]


def test_second_export_quantises_and_traces_nothing(
    export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Counting(), Counting()
    folder, digests = export("first", first)
    assert first.calls == LINEARS + 2  # q, k and v are three

    def traced(*_: object) -> None:
        raise AssertionError("the graph was traced again")

    monkeypatch.setattr(dit_onnx, "build_dit_graph", traced)
    again, same = export("second", second)
    assert second.calls == 0
    assert same == digests
    assert _contents(again) == _contents(folder)


def test_another_shape_keeps_the_linears(export: Export) -> None:
    export("first", Counting())
    second = Counting()
    folder, _ = export("second", second, shape=VideoShape(48, 32, 5))
    assert second.calls == 0
    fresh, _ = export("third", Counting(), shape=VideoShape(48, 32, 5))
    assert _contents(folder) == _contents(fresh)


def test_a_changed_tensor_is_quantised_again_and_no_other(export: Export, tiny: Checkpoint) -> None:
    changed = "blocks.0.ffn.net.2.weight"

    class Edited:
        names, shape = tiny.transformer.names, tiny.transformer.shape

        def read(self, name: str) -> Tensor:
            tensor = tiny.transformer.read(name)
            return tensor * 2 if name == changed else tensor

    _, digests = export("first", Counting())
    second = Counting()
    _, edited = export("second", second, source=Edited())
    assert second.calls == 1
    differing = {name for name in digests if digests[name] != edited[name]}
    assert differing == {"blocks.0.ffn.fc2.weight_scale_2"}


def test_a_killed_export_resumes(export: Export, tmp_path: Path) -> None:
    killed = Counting(survive=4)
    with pytest.raises(KeyboardInterrupt):
        export("killed", killed)
    assert list((tmp_path / "killed").iterdir()) == []
    resumed = Counting()
    export("resumed", resumed)
    assert 0 < resumed.calls < LINEARS + 2
    assert resumed.calls <= LINEARS + 2 - 2  # a group that was begun is made anew


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    return {
        "a": torch.arange(6, dtype=torch.uint8),
        "b": torch.ones(2, 3, dtype=torch.bfloat16),
        "c": torch.tensor(2.5),
        "d": torch.arange(4, dtype=torch.uint8).view(torch.float8_e4m3fn),
    }


def test_tensors_come_back_with_dtype_shape_and_bytes(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    cache = ExportCache(tmp_path)
    key = content_key("linear", {}, tensors.items())
    assert cache.tensors(key) is None
    cache.put_tensors(key, tensors, {"digests": {"a": "0"}})
    found, note = cache.tensors(key) or ({}, {})
    assert note == {"digests": {"a": "0"}}
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert tensor_bytes(found[name]) == tensor_bytes(tensor)


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table,
        lambda table: table[:-1],
        lambda table: [*table, table[0]],
        lambda table: [["a", "uint8", [600]], *table[1:]],
        lambda table: [["a", "uint8", [-6]], *table[1:]],
        lambda table: [["a", "Tensor", [6]], *table[1:]],
        lambda table: [["a", "no_dtype", [6]], *table[1:]],
        lambda table: [["a", "uint8"], *table[1:]],
        lambda table: [["a", "uint8", ["6"]], *table[1:]],
        lambda table: None,
    ],
)
def test_a_table_that_does_not_fit_is_a_miss(
    tmp_path: Path, tensors: dict[str, Tensor], change: Callable[[Any], Any]
) -> None:
    cache = ExportCache(tmp_path)
    key = content_key("linear", {}, tensors.items())
    cache.put_tensors(key, tensors, {"digests": {}})
    stored = ContentCache("exports", tmp_path)
    contents, note = stored.read(key) or ({}, {})
    table = change(note["tensors"])
    stored.put(key, dict(contents), note | {"tensors": table}, replace=True)
    assert (cache.tensors(key) is None) == (table != note["tensors"])
    cache.put_tensors(key, tensors, {"digests": {}})
    assert cache.tensors(key) is not None


def test_key_depends_on_every_byte_and_on_the_facts() -> None:
    one = torch.zeros(4, dtype=torch.uint8)
    other = one.clone()
    other[3] = 1
    keys = {
        content_key("linear", {}, [("w", one)]),
        content_key("linear", {}, [("w", other)]),
        content_key("linear", {}, [("v", one)]),
        content_key("linear", {}, [("w", one.reshape(2, 2))]),
        content_key("linear", {"recipe": 1}, [("w", one)]),
        content_key("dit", {}, [("w", one)]),
    }
    assert len(keys) == 6
    assert content_key("linear", {}, [("w", one.clone())]) in keys
