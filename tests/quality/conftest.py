"""Layer records by hand, and a bundle of engines that can be recorded, priced and inspected."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from fastwan.bundle import Bundle, open_bundle
from fastwan.config import VideoShape
from fastwan.engines.layers import LayerRecord, TensorRecord
from fastwan.manifest import (
    MANIFEST,
    BuildRecord,
    Engine,
    FileRecord,
    Linear,
    Manifest,
    Region,
    RegionNode,
    TensorSpec,
)
from fastwan.plugins.loader import checkout_root
from fastwan.runtime.recording.tensors import allocate
from testkit.manifests import exported_of, manifest_of, records_of

TOKENS, HEADS = 128, 2
WIDTH = HEADS * 128
LATENTS = (1, 16, 3, 2, 4)
FRAMES = (4, 16, 32, 3)
TEXT_PROFILES = ((1, 64, 64), (65, 256, 256))
SHAPE = VideoShape(height=16, width=32, num_frames=9)


def record(
    name: str,
    kind: str = "gemm",
    *,
    inputs: list[tuple[str, tuple[int, ...]]],
    constants: list[tuple[str, tuple[int, ...]]] | None = None,
    outputs: list[tuple[str, tuple[int, ...]]],
    nodes: tuple[str, ...] = (),
) -> LayerRecord:
    """A layer record with tensors given as (dtype, shape)."""

    def tensors(items: list[tuple[str, tuple[int, ...]]], role: str) -> tuple[TensorRecord, ...]:
        return tuple(
            TensorRecord(f"{name}.{role}{i}", dtype, shape)
            for i, (dtype, shape) in enumerate(items)
        )

    return LayerRecord(
        name=name,
        type=kind,
        inputs=tensors(inputs, "in"),
        constants=tensors(constants or [], "const"),
        outputs=tensors(outputs, "out"),
        tactic="",
        nodes=nodes,
    )


def spec(name: str, *shape: int | str, dtype: str = "bfloat16") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def quantise() -> LayerRecord:
    """[1, 128, 256] bf16 to FP4."""
    return record(
        "quantise", "kgen", inputs=[("BFloat16", (1, TOKENS, WIDTH))],
        outputs=[("FP4E2M1", (1, TOKENS, WIDTH)), ("FP8", (1, 1, 4, 32, 4, 4))],
    )  # fmt: skip


def fp4_gemm(n: int, node: str = "a/MatMul") -> LayerRecord:
    """[1, 128, 256] FP4 times [256, n] FP4."""
    return record(
        f"{node}_myl0_1",
        inputs=[("FP4E2M1", (1, TOKENS, WIDTH)), ("FP8", (1, 1, 4, 32, 4, 4))],
        constants=[
            ("FP4E2M1", (1, WIDTH, n)),
            ("Float", (1,)),
            ("FP8", (1, 4, 4, n // 128, 4, 32)),
        ],
        outputs=[("BFloat16", (1, TOKENS, n))],
        nodes=(node,),
    )


def move(elements: int, dtype: str = "BFloat16") -> LayerRecord:
    """A kernel that reads and writes `elements` once; -1 for a dynamic axis."""
    return record("move", "kgen", inputs=[(dtype, (1, elements))], outputs=[(dtype, (1, elements))])


def region() -> Region:
    constants = (
        spec("scale", 3, dtype="float32"),
        spec("bias", 3 * WIDTH),
        spec("norm_q", WIDTH),
        spec("norm_k", WIDTH),
        spec("rope_cos", TOKENS, 64, dtype="float32"),
        spec("rope_sin", TOKENS, 64, dtype="float32"),
    )
    qkv, out = spec("qkv", 1, TOKENS, 3 * WIDTH), spec("out", 1, TOKENS, WIDTH)
    node = RegionNode(
        op="SageAttention3",
        inputs=(qkv.name, *(constant.name for constant in constants)),
        outputs=(out.name,),
        attributes={"num_heads": HEADS, "num_tokens": 100, "eps": 1e-6},
    )
    return Region(
        component="dit", after="segment_00", nodes=(node,), inputs=(qkv,), constants=constants,
        outputs=(out,),
    )  # fmt: skip


def linear(name: str) -> Linear:
    return Linear(name=name, node=f"{name}/MatMul", sources=(name,), format="nvfp4")


def engines() -> dict[str, tuple[Engine, list[LayerRecord]]]:
    """Engines of all components in the order in which they run, with their layer records."""

    def engine(name: str, component: str, *tensors: list[TensorSpec], **rest: Any) -> Engine:
        inputs, outputs = tensors
        return Engine(
            file=f"{component}/{name}.engine", component=component, inputs=tuple(inputs),
            outputs=tuple(outputs), **({"scratch_bytes": 1024} | rest),
        )  # fmt: skip

    keys, values = spec("blocks.0.attn2.k", 1, 6, 8), spec("blocks.0.attn2.v", 1, 6, 8)
    temb, hidden = spec("temb", 1, dtype="float32"), spec("hidden", 1, TOKENS, WIDTH)
    memory = spec("memory_0", 1, 8, 2, 4, dtype="float16")
    text = [spec("embeddings", 1, "length", 8)], [spec("hidden_states", 1, "length", 8)]
    shapes = tuple(tuple((1, length, 8) for length in bounds) for bounds in TEXT_PROFILES)
    encoder = engine("text_encoder", "text_encoder", *text, runs="prompt",
                     profiles={"embeddings": shapes})  # fmt: skip
    per_profile = [replace(move(-1, "Half"), profile=index) for index in range(2)]
    return {
        "text_encoder": (encoder, [*per_profile, replace(move(-1, "Half"), profile=1)]),
        "time_tables": (
            engine("time_tables", "dit", [spec("timestep", 1, dtype="float32")], [temb],
                   runs="schedule"),
            [move(1000)],
        ),
        "text_kv": (
            engine("text_kv", "dit", [spec("encoder_hidden_states", 1, 6, 8)], [keys, values],
                   runs="prompt"),
            [move(2000)],
        ),
        "segment_00": (
            engine("segment_00", "dit", [spec("latents", *LATENTS), temb],
                   [hidden, spec("qkv", 1, TOKENS, 3 * WIDTH)], linears=(linear("a"),)),
            [quantise(), fp4_gemm(3 * WIDTH)],
        ),
        "segment_01": (
            engine("segment_01", "dit", [hidden, spec("out", 1, TOKENS, WIDTH), keys, values],
                   [spec("velocity", *LATENTS)], scratch_bytes=4096, linears=(linear("b"),)),
            [quantise(), fp4_gemm(WIDTH, "b/MatMul"), move(3000)],
        ),
        "decoder": (
            engine("decoder", "decoder", [spec("latent", 1, 16, 2, 4, dtype="float16"), memory],
                   [spec("frames", *FRAMES, dtype="uint8"),
                    memory.model_copy(update={"name": "memory_0_out"})], runs="latent"),
            [move(4000), move(5000)],
        ),
    }  # fmt: skip


def priced_manifest(
    engines: dict[str, Engine],
    regions: dict[str, Region],
    files: dict[str, FileRecord],
    shape: VideoShape = SHAPE,
    **rest: Any,
) -> Manifest:
    """A manifest without graphs."""
    return manifest_of(
        tool_version="0.1",
        versions={"tensorrt-rtx": "1.0"},
        onnx=exported_of(shape=shape),
        engines=engines,
        regions=regions,
        files=files,
        build=BuildRecord(seconds=1.5, peak_rss_bytes=10, stages={"export": 1.0}),
        **rest,
    )


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Bundle]:
    """Write a bundle without graphs; everything but running it works."""

    def make(
        target: str = "rtx5090",
        components: tuple[str, ...] = ("text_encoder", "dit", "decoder"),
        sampler: str = "unipc",
    ) -> Bundle:
        root = tmp_path / "bundle"
        parts = {n: part for n, part in engines().items() if part[0].component in components}
        for engine, _ in parts.values():
            path = root / engine.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"plan of " + engine.file.encode())
        layers = {
            name: [each.to_json() for each in records] for name, (_, records) in parts.items()
        }
        (root / "layers.json").write_text(json.dumps(layers))
        manifest = priced_manifest(
            {name: engine for name, (engine, _) in parts.items()},
            {"region_00": region()} if "dit" in components else {},
            records_of(root),
            target=target,
            sampler=sampler,
            components=components,
        )
        (root / MANIFEST).write_text(manifest.model_dump_json())
        return open_bundle(root)

    return make


@pytest.fixture
def constants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros for the weights that the region reads, in place of the bundle's ONNX file."""
    sizes = {each.name: allocate(each).size for each in region().constants}
    monkeypatch.setattr(
        "fastwan.runtime.device.memory.initializers",
        lambda _bundle, names: {name: bytes(sizes[name]) for name in names}.items(),
    )


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """Helpers of this file."""
    return SimpleNamespace(record=record, move=move, manifest=priced_manifest)


@pytest.fixture(scope="session")
def validator() -> Callable[[str], Draft202012Validator]:
    """Make the validator of a command's published schema."""
    root = checkout_root()
    if root is None:
        pytest.skip("not a source checkout")

    def make(command: str) -> Draft202012Validator:
        path = Path(root, "docs", "schema", f"{command}.json")
        return Draft202012Validator(json.loads(path.read_text()))

    return make
