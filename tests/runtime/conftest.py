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
from onnx import helper
from safetensors.torch import save_file

from fastwan.bundle import Bundle, open_bundle
from fastwan.config import SAMPLERS, SamplerSpec, VideoShape
from fastwan.manifest import (
    Engine,
    Graph,
    Manifest,
    Region,
    TensorSpec,
)
from fastwan.runtime.device.null import NullDevice
from fastwan.runtime.device.platforms import null_platform
from fastwan.runtime.device.session import Platform, Session
from fastwan.runtime.model.samplers import schedule_of
from testkit.fake_graphs import (
    BF16,
    FLOAT,
    LATENTS,
    TEXT_DIM,
    WORDS,
    decoder_graph,
    dit_graph,
    text_encoder_graph,
    text_kv_graph,
    time_tables_graph,
    tokenizer,
)
from testkit.fake_regions import cut, region, zeros
from testkit.host_device import HostDevice, make_host_platform
from testkit.manifests import exported_of, write_manifest

TEXT_PROFILES = ((1, 3, 3), (4, 6, 6))
SHAPE = VideoShape(height=16, width=32, num_frames=9)


@dataclass
class FakeBundle:
    """A bundle folder under construction; `write` hashes the files and writes the manifest."""

    root: Path
    sampler: str = "unipc"
    samplers: tuple[SamplerSpec, ...] = (SAMPLERS["unipc"], SAMPLERS["dmd"])
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
        engines = {name: self.engine(name) for name in ("text_encoder", *names) if name in names}
        write_manifest(
            self.root,
            sampler=self.sampler,
            samplers=self.samplers,
            components=("dit", "decoder"),
            onnx=exported_of(graphs, name="fake", shape=self.shape),
            engines=engines,
        )

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


@pytest.fixture
def host_device() -> HostDevice:
    return HostDevice()


@pytest.fixture
def open_session(bundle: FakeBundle) -> Callable[..., Session]:
    """Session of the fake bundle, on a device in host memory or on the null device."""

    def make(
        device: NullDevice | None = None,
        *,
        sampler: str | SamplerSpec = "unipc",
        manifest: Manifest | None = None,
    ) -> Session:
        device = device or HostDevice()
        opened = open_bundle(bundle.root)
        if manifest is not None:
            opened = Bundle(opened.root, manifest)
        on_host = isinstance(device, HostDevice)
        platform = make_host_platform(device) if on_host else null_platform(opened, device)
        spec = SAMPLERS[sampler] if isinstance(sampler, str) else sampler
        return Session(platform, opened, schedule_of(spec))

    return make


@pytest.fixture
def host_platform() -> Callable[[HostDevice], Platform]:
    return make_host_platform


@pytest.fixture
def segmented(bundle: FakeBundle, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """The fake bundle with its transformer cut into three segments and two regions."""
    made = cut(open_bundle(bundle.root))
    weights = zeros(made.manifest.regions)
    monkeypatch.setattr(
        "fastwan.runtime.device.memory.initializers",
        lambda _bundle, names: {name: weights[name] for name in names if name in weights}.items(),
    )
    return made


@pytest.fixture(scope="session")
def make_region() -> Callable[..., Region]:
    """Make an attention region of the cut bundle."""
    return region
