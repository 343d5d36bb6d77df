"""Device memory: what is alive at once, counted by hand."""

from __future__ import annotations

from typing import Any

import pytest

from fastwan.bundle import (
    BuildRecord,
    Engine,
    FileRecord,
    Manifest,
    Model,
    OnnxManifest,
    Region,
    RegionNode,
    Shape,
    TensorSpec,
)
from fastwan.config import SAMPLERS
from fastwan.quality.memory import device_bytes, spec_bytes


def spec(name: str, size: int) -> TensorSpec:
    return TensorSpec(name=name, dtype="uint8", shape=(size,))


def engine(file: str, reads: dict[str, int], writes: dict[str, int], **rest: Any) -> Engine:
    settings: dict[str, Any] = {"component": "dit", "scratch_bytes": 0} | rest
    return Engine(
        file=file,
        inputs=tuple(spec(*item) for item in reads.items()),
        outputs=tuple(spec(*item) for item in writes.items()),
        **settings,
    )


def manifest(engines: dict[str, Engine], regions: dict[str, Region] | None = None) -> Manifest:
    model = Model(
        name="tiny",
        recipe="nvfp4",
        shape=Shape(height=96, width=160, num_frames=9),
        dit={},
        decoder={},
        text_encoder=None,
        default_sampler="unipc",
    )
    return Manifest(
        tool_version="0",
        versions={},
        target="rtx5090",
        backend="tensorrt-rtx",
        attention="sage3",
        sampler="unipc",
        samplers=(SAMPLERS["unipc"],),
        components=("dit",),
        onnx=OnnxManifest(tool_version="0", model=model, graphs={}),
        engines=engines,
        regions=regions or {},
        files={e.file: FileRecord(sha256="", bytes=1000) for e in engines.values()},
        build=BuildRecord(seconds=0, peak_rss_bytes=0),
    )


def test_a_value_lives_from_its_maker_to_its_last_reader() -> None:
    chain = {
        "a": engine("a", {"x": 1}, {"h": 10}),
        "b": engine("b", {"h": 10}, {"i": 100}),
        "c": engine("c", {"i": 100}, {"j": 10}),
    }
    # h and i, or i and j, and x for as long as only `a` reads it.
    assert device_bytes(manifest(chain))["tensors"] == 110
    chain["c"] = engine("c", {"i": 100, "h": 10}, {"j": 10})
    assert device_bytes(manifest(chain))["tensors"] == 120


def test_text_keys_and_values_stay_for_every_step() -> None:
    text = {"t": 5}
    chain = {
        "text_kv": engine("k", text, {"kv": 1000}, runs="prompt"),
        "first": engine("a", {"kv": 1000}, {"h": 10}),
        "second": engine("b", {"h": 10}, {"y": 100}),
    }
    assert device_bytes(manifest(chain))["tensors"] == 1000 + 10 + 100
    chain["text_kv"] = engine("k", text, {"kv": 1000}, runs="step")
    assert device_bytes(manifest(chain))["tensors"] == 1000 + 10


def test_tables_of_every_step_stay_and_keep_their_size_where_one_is_read() -> None:
    chain = {
        "time_tables": engine("t", {"timestep": 4}, {"table": 1000}, runs="schedule"),
        "first": engine("a", {"table": 1000}, {"h": 10}),
        "second": engine("b", {"h": 10}, {"y": 100}),
    }
    assert device_bytes(manifest(chain))["tensors"] == 3 * 1000 + 10 + 100
    chain["time_tables"] = engine("t", {"timestep": 4}, {"table": 1000}, runs="prompt")
    assert device_bytes(manifest(chain))["tensors"] == 1000 + 10 + 100


def test_regions_stand_where_they_run() -> None:
    chain = {"a": engine("a", {}, {"qkv": 300}), "b": engine("b", {"out": 100}, {"y": 1})}
    region = Region(
        component="dit",
        after="a",
        nodes=(RegionNode(op="Any", inputs=("qkv",), outputs=("out",), attributes={}),),
        inputs=(spec("qkv", 300),),
        constants=(),
        outputs=(spec("out", 100),),
    )
    assert device_bytes(manifest(chain, {"region_00": region}))["tensors"] == 400


def test_scratch_is_shared_and_components_take_turns() -> None:
    engines = {
        "dit": engine("a", {"x": 7}, {"y": 7}, scratch_bytes=50),
        "decoder": engine("b", {"x": 9}, {"y": 1}, scratch_bytes=80, component="decoder"),
    }
    found = device_bytes(manifest(engines))
    assert found == {"weights": 2000, "scratch": 80, "tensors": 14, "total": 2094}


def test_a_dynamic_axis_counts_at_its_longest() -> None:
    text = TensorSpec(name="x", dtype="bfloat16", shape=(1, "length", 4))
    record = Engine(
        file="t",
        component="text_encoder",
        inputs=(text,),
        outputs=(),
        scratch_bytes=0,
        profiles={"x": (((1, 1, 4), (1, 64, 4), (1, 512, 4)), ((1, 1, 4), (1, 64, 4), (1, 64, 4)))},
    )
    assert device_bytes(manifest({"t": record}))["tensors"] == 512 * 4 * 2


@pytest.mark.parametrize(("layout", "size"), [("linear", 96), ("hwc8", 256)])
def test_channels_last_buffers_are_padded(layout: Any, size: int) -> None:
    tensor = TensorSpec(name="m", dtype="float16", shape=(1, 3, 4, 4), format=layout)
    assert spec_bytes(tensor) == size
