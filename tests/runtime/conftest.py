"""A small bundle of hand-made graphs with the names, dtypes and dynamic axes of the real ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from fastwan.config import SAMPLERS, DiTConfig, VideoShape
from fastwan.files import sha256_file
from fastwan.manifest import (
    MANIFEST,
    BuildRecord,
    Engine,
    FileRecord,
    Graph,
    Manifest,
    Model,
    OnnxManifest,
    TensorSpec,
)

TEXT_LENGTH, TEXT_DIM = 6, 8
TEXT_PROFILES = ((1, 3, 3), (4, 6, 6))
SHAPE = VideoShape(height=16, width=32, num_frames=9)
LATENTS = (1, 16, 3, 2, 4)
FLOAT, HALF, BF16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
WORDS = ("</s>", "<unk>", "a", "red", "fox", "runs")


@dataclass
class FakeBundle:
    """A bundle folder under construction; `write` hashes the files and writes the manifest."""

    root: Path
    sampler: str = "unipc"
    text_encoder: bool = True
    float_type: int = BF16
    timestep_type: int = FLOAT
    latents: tuple[int, ...] = LATENTS
    shape: VideoShape = SHAPE
    data: dict[str, tuple[str, ...]] = field(default_factory=lambda: {"dit": ("dit.data",)})

    @property
    def onnx(self) -> Path:
        return self.root / "onnx"

    def write(self) -> FakeBundle:
        (self.onnx / "tokenizer").mkdir(parents=True, exist_ok=True)
        onnx.save(decoder_graph(*self.latents[-2:]), self.onnx / "decoder.cpu.onnx")
        onnx.save(time_tables_graph(self.timestep_type), self.onnx / "time_tables.cpu.onnx")
        onnx.save(text_kv_graph(self.float_type), self.onnx / "text_kv.cpu.onnx")
        onnx.save(
            dit_graph(self.latents, self.float_type),
            self.onnx / "dit.cpu.onnx",
            save_as_external_data=True,
            location="dit.data",
            size_threshold=0,
        )
        if self.text_encoder:
            onnx.save(text_encoder_graph(self.float_type), self.onnx / "text_encoder.cpu.onnx")
            table = torch.randn(len(WORDS), TEXT_DIM, generator=torch.Generator().manual_seed(0))
            save_file({"weight": table.bfloat16()}, self.onnx / "embedding.safetensors")
            tokenizer().save(str(self.onnx / "tokenizer" / "tokenizer.json"))
        self.write_manifest()
        return self

    def write_manifest(self) -> None:
        names = ["dit", "time_tables", "text_kv", "decoder"]
        names += ["text_encoder"] * self.text_encoder
        graphs = {
            name: Graph(
                file=f"{name}.onnx",
                cpu_file=f"{name}.cpu.onnx",
                data=self.data.get(name, ()),
                inputs=(),
                outputs=(),
            )
            for name in names
        }
        model = Model(
            name="fake",
            recipe="nvfp4",
            shape=self.shape,
            dit=DiTConfig(),
            decoder=None,
            text_encoder=None,
            default_sampler="unipc",
        )
        engines = {name: self.engine(name) for name in ("text_encoder", *names) if name in names}
        files = {
            str(path.relative_to(self.root)): FileRecord(
                sha256=sha256_file(path), bytes=path.stat().st_size
            )
            for path in sorted(self.root.rglob("*"))
            if path.is_file() and path.name != MANIFEST
        }
        manifest = Manifest(
            tool_version="0",
            versions={},
            target="rtx5090",
            backend="tensorrt-rtx",
            attention="sage3",
            sampler=self.sampler,
            samplers=(SAMPLERS["unipc"], SAMPLERS["dmd"]),
            components=("dit", "decoder"),
            onnx=OnnxManifest(tool_version="0", model=model, graphs=graphs),
            engines=engines,
            files=files,
            build=BuildRecord(seconds=0, peak_rss_bytes=0),
        )
        (self.root / MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")

    def engine(self, name: str) -> Engine:
        """Record of an engine that has the names, dtypes and shapes of the CPU graph."""
        model = onnx.load(self.onnx / f"{name}.cpu.onnx", load_external_data=False)
        component = "dit" if name in ("time_tables", "text_kv") else name
        cadences = {"dit": "step", "decoder": "latent", "time_tables": "schedule"}
        path = self.root / component / f"{name}.engine"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(f"engine {name}".encode())
        dynamic = name == "text_encoder"
        shapes = tuple(
            tuple((1, length, TEXT_DIM) for length in bounds) for bounds in TEXT_PROFILES
        )
        return Engine(
            file=str(path.relative_to(self.root)),
            component=component,
            inputs=tuple(map(spec_of, model.graph.input)),
            outputs=tuple(map(spec_of, model.graph.output)),
            scratch_bytes={"dit": 4096, "decoder": 1000}.get(name, 100),
            runs=cadences.get(name, "prompt"),
            profiles={"embeddings": shapes} if dynamic else {},
        )


def spec_of(value: onnx.ValueInfoProto) -> TensorSpec:
    """Spec of a graph input or output."""
    kind = value.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    shape = tuple(axis.dim_param or axis.dim_value for axis in kind.shape.dim)
    return TensorSpec(name=value.name, dtype=dtype, shape=shape)


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., FakeBundle]:
    """Write a fake bundle; keyword arguments are `FakeBundle`'s."""

    def make(name: str = "bundle", **options: object) -> FakeBundle:
        return FakeBundle(tmp_path / name, **options).write()  # type: ignore[arg-type]

    return make


@pytest.fixture
def bundle(make_bundle: Callable[..., FakeBundle]) -> FakeBundle:
    return make_bundle()


@pytest.fixture(scope="session")
def wan_latents() -> np.ndarray:
    """Real normalised Wan 2.1 latents, fp32 [1, 16, 16, 40, 64]."""
    folder = os.environ.get("FASTWAN_SHARED_DATA")
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    path = (Path(folder) if folder else beside) / "wan21_latents_16x16x40x64.safetensors"
    if not path.is_file():
        pytest.skip(f"{path.name} is not here: set FASTWAN_SHARED_DATA to its folder")
    from safetensors.torch import load_file

    return load_file(path)["latents"].float().numpy()


def tokenizer() -> Tokenizer:
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 0)]
    )
    made.enable_padding(length=TEXT_LENGTH)
    return made


def model_of(nodes: list, inputs: list, outputs: list, **constants: np.ndarray) -> onnx.ModelProto:
    """Checked model; inputs and outputs are (name, type, shape)."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*each) for each in inputs],
        [helper.make_tensor_value_info(*each) for each in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def text_encoder_graph(dtype: int) -> onnx.ModelProto:
    weight = np.random.default_rng(1).standard_normal((TEXT_DIM, TEXT_DIM)).astype(np.float32)
    return model_of(
        [
            helper.make_node("Cast", ["embeddings"], ["x"], to=FLOAT),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
            helper.make_node("Cast", ["y"], ["hidden_states"], to=dtype),
        ],
        [("embeddings", dtype, [1, "length", TEXT_DIM])],
        [("hidden_states", dtype, [1, "length", TEXT_DIM])],
        w=weight,
    )


def time_tables_graph(timestep_type: int) -> onnx.ModelProto:
    """temb = timestep in fp32."""
    return model_of(
        [helper.make_node("Cast", ["timestep"], ["temb"], to=FLOAT)],
        [("timestep", timestep_type, [1])],
        [("temb", FLOAT, [1])],
    )


def text_kv_graph(dtype: int) -> onnx.ModelProto:
    shape = [1, TEXT_LENGTH, TEXT_DIM]
    return model_of(
        [
            helper.make_node("Cast", ["encoder_hidden_states"], ["x"], to=FLOAT),
            helper.make_node("Mul", ["x", "two"], ["y"]),
            helper.make_node("Cast", ["x"], ["blocks.0.attn2.k"], to=dtype),
            helper.make_node("Cast", ["y"], ["blocks.0.attn2.v"], to=dtype),
        ],
        [("encoder_hidden_states", dtype, shape)],
        [("blocks.0.attn2.k", dtype, shape), ("blocks.0.attn2.v", dtype, shape)],
        two=np.array(2, np.float32),
    )


def dit_graph(latents: tuple[int, ...], dtype: int) -> onnx.ModelProto:
    """velocity = latents * w + temb / 1000 * mean(k + v), w by channel, in external data."""
    weight = np.random.default_rng(2).standard_normal((1, latents[1], 1, 1, 1)) * 0.5
    text = [1, TEXT_LENGTH, TEXT_DIM]
    return model_of(
        [
            helper.make_node("Cast", ["latents"], ["x"], to=FLOAT),
            helper.make_node("Cast", ["blocks.0.attn2.k"], ["k"], to=FLOAT),
            helper.make_node("Cast", ["blocks.0.attn2.v"], ["v"], to=FLOAT),
            helper.make_node("Add", ["k", "v"], ["kv"]),
            helper.make_node("ReduceMean", ["kv"], ["mean"], keepdims=0),
            helper.make_node("Div", ["temb", "thousand"], ["time"]),
            helper.make_node("Mul", ["time", "mean"], ["shift"]),
            helper.make_node("Mul", ["x", "w"], ["scaled"]),
            helper.make_node("Add", ["scaled", "shift"], ["sum"]),
            helper.make_node("Cast", ["sum"], ["velocity"], to=dtype),
        ],
        [
            ("latents", dtype, latents),
            ("temb", FLOAT, [1]),
            ("blocks.0.attn2.k", dtype, text),
            ("blocks.0.attn2.v", dtype, text),
        ],
        [("velocity", dtype, latents)],
        w=weight.astype(np.float32),
        thousand=np.array(1000, np.float32),
    )


def decoder_graph(h: int, w: int) -> onnx.ModelProto:
    """Frame f = clamp(0.5 + 0.1 (f+1) latent + 0.2 previous + 0.1 the one before) in RGB, x8."""
    latent = [1, 16, h, w]
    return model_of(
        [
            # ONNX Runtime computes fp16 arithmetic in fp32 anyway: say so in the graph.
            *(
                helper.make_node("Cast", [name], [f"{name}_f"], to=FLOAT)
                for name in ("latent", "memory_0", "memory_1")
            ),
            helper.make_node("Mul", ["memory_0_f", "previous"], ["a"]),
            helper.make_node("Mul", ["memory_1_f", "before"], ["b"]),
            helper.make_node("Add", ["a", "b"], ["past"]),
            helper.make_node("Mul", ["latent_f", "growth"], ["now"]),
            helper.make_node("Add", ["now", "past"], ["sum"]),
            helper.make_node("Slice", ["sum", "start", "end", "axis"], ["rgb"]),
            helper.make_node("Add", ["rgb", "half"], ["shifted"]),
            helper.make_node("Clip", ["shifted", "zero", "one"], ["clipped"]),
            helper.make_node("Resize", ["clipped", "", "scales"], ["large"], mode="nearest"),
            helper.make_node("Mul", ["large", "levels"], ["scaled"]),
            helper.make_node("Transpose", ["scaled"], ["nhwc"], perm=[0, 2, 3, 1]),
            helper.make_node("Cast", ["nhwc"], ["frames"], to=TensorProto.UINT8),
            helper.make_node("Identity", ["latent"], ["memory_0_out"]),
            helper.make_node("Identity", ["memory_0"], ["memory_1_out"]),
        ],
        [("latent", HALF, latent), ("memory_0", HALF, latent), ("memory_1", HALF, latent)],
        [
            ("frames", TensorProto.UINT8, [4, 8 * h, 8 * w, 3]),
            ("memory_0_out", HALF, latent),
            ("memory_1_out", HALF, latent),
        ],
        previous=np.array(0.2, np.float32),
        before=np.array(0.1, np.float32),
        half=np.array(0.5, np.float32),
        growth=np.arange(1, 5, dtype=np.float32).reshape(4, 1, 1, 1) * np.float32(0.1),
        start=np.array([0], np.int64),
        end=np.array([3], np.int64),
        axis=np.array([1], np.int64),
        zero=np.array(0, np.float32),
        one=np.array(1, np.float32),
        scales=np.array([1, 1, 8, 8], np.float32),
        levels=np.array(255, np.float32),
    )
