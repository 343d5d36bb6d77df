"""The runtime's own CUDA device, graphs and kernels on a GPU that no engine of ours is built for.

Recording, memory plan, session, graph capture, events, copies and the plugin library's small
kernels are the ones that play engines; only what an engine computes is a torch module here.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastwan.bundle import Bundle
from fastwan.config import SAMPLERS, DiTConfig, VideoShape
from fastwan.export.attentions import EXACT
from fastwan.export.checkpoint.reader import Checkpoint, open_checkpoint
from fastwan.export.checkpoint.synthetic import make_checkpoint
from fastwan.export.decoder_onnx import load_decoder
from fastwan.export.models.layers import rope_tables
from fastwan.export.models.taehv import StreamingStep
from fastwan.export.models.umt5 import UMT5Encoder
from fastwan.export.recipes import BF16
from fastwan.export.weights import load_module
from fastwan.manifest import (
    BuildRecord,
    Engine,
    FileRecord,
    Manifest,
    Model,
    OnnxManifest,
    TensorSpec,
)
from fastwan.plugins.loader import PluginLibrary
from fastwan.runtime.device.cuda import CudaDevice
from fastwan.runtime.device.kernels import PluginKernels
from fastwan.runtime.device.session import Platform, Session
from fastwan.runtime.model.noise import draw, generator_for
from fastwan.runtime.model.samplers import schedule_of
from fastwan.runtime.recording.machine import Binding, DeviceError

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "uint8": torch.uint8,
}
Record = dict[str, Any]
LONG = 400
"""Tokens of a prompt in the text encoder's second profile."""


class _Raw:
    """Device memory that torch may look at without owning it."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (address, False),
            "strides": None,
            "version": 3,
        }


@cache
def tensor_at(binding: Binding, dtype: str) -> Tensor:
    """A CUDA tensor over memory that somebody else owns; made once, outside of any capture."""
    address, shape = binding
    kind = DTYPES[dtype]
    size = int(np.prod(shape)) * kind.itemsize
    return torch.as_tensor(_Raw(address, size), device="cuda").view(kind).view(shape)


class TorchEngine:
    """A function of tensors behind the runtime's engine protocol."""

    scratch_bytes = 0

    def __init__(self, record: Engine, function: Callable[..., Sequence[Tensor]]) -> None:
        self._record = record
        self._function = function

    def enqueue(
        self,
        bindings: Mapping[str, Binding],
        scratch: int,
        scratch_bytes: int,
        stream: int,
        profile: int = 0,
    ) -> None:
        inputs, outputs = self._record.inputs, self._record.outputs
        with torch.no_grad(), torch.cuda.stream(torch.cuda.ExternalStream(stream)):
            try:
                made = self._function(*(tensor_at(bindings[s.name], s.dtype) for s in inputs))
                for spec, value in zip(outputs, made, strict=True):
                    tensor_at(bindings[spec.name], spec.dtype).copy_(value)
            except RuntimeError as error:
                raise DeviceError(" ".join(str(error).split())[:200]) from error


class Built:
    """Engine records and what computes them; shapes and dtypes are those of one run on zeros."""

    def __init__(self) -> None:
        self.engines: dict[str, Engine] = {}
        self.functions: dict[str, Callable[..., Sequence[Tensor]]] = {}

    def add(
        self,
        name: str,
        function: Callable[..., Sequence[Tensor]],
        inputs: Mapping[str, Tensor],
        outputs: Sequence[str],
        **fields: Any,
    ) -> dict[str, Tensor]:
        """Add an engine; returns its results by name."""
        with torch.no_grad():
            made = dict(zip(outputs, function(*inputs.values()), strict=True))
        self.functions[name] = function
        self.engines[name] = Engine(
            file=f"{name}.engine",
            inputs=tuple(_spec(key, value) for key, value in inputs.items()),
            outputs=tuple(_spec(key, value) for key, value in made.items()),
            scratch_bytes=0,
            **fields,
        )
        return made


def _spec(name: str, tensor: Tensor) -> TensorSpec:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorSpec(name=name, dtype=dtype, shape=tuple(tensor.shape))


def build(checkpoint: Checkpoint, shape: VideoShape, device: str = "cuda") -> Built:
    """The parts of a checkpoint as the engines of a bundle, in bf16 and fp16 as engines are."""
    config = checkpoint.dit_config
    module = load_module(checkpoint.transformer, config, shape, BF16())
    module.set_quantizers(activations=False, attention=EXACT).to(device)
    tables = [table.to(device) for table in rope_tables(shape, config.head_dim)]

    def text_kv(embeds: Tensor) -> list[Tensor]:
        hidden = module.text_embed(embeds)
        return [value for block in module.text_kv for value in block(hidden)]

    def velocity(latents: Tensor, temb: Tensor, timestep_proj: Tensor, *kv: Tensor) -> list[Tensor]:
        hidden = module.embed.tokens(latents)
        for index, block in enumerate(module.blocks):
            hidden = block(hidden, timestep_proj, kv[2 * index], kv[2 * index + 1], *tables)
        return [module.head(hidden, temb)]

    text = UMT5Encoder(checkpoint.text_config, BF16()).eval()
    store = checkpoint.text_encoder
    text.load_state_dict({name: store.read(name) for name in text.state_dict()})
    text.to(device)

    def encode(embeddings: Tensor) -> list[Tensor]:
        with torch.device(device):
            return [text.encode(embeddings)]

    built = Built()

    def zeros(*size: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.zeros(size, dtype=dtype, device=device)

    length, width = config.text_length, checkpoint.text_config.d_model
    built.add(
        "text_encoder",
        encode,
        {"embeddings": zeros(1, length, width)},
        ["hidden_states"],
        component="text_encoder",
        runs="prompt",
    )
    row = built.engines["text_encoder"]
    dynamic = {
        side: tuple(
            spec.model_copy(update={"shape": (1, "length", width)}) for spec in getattr(row, side)
        )
        for side in ("inputs", "outputs")
    }
    # Two profiles, as engines have several: the shorter prompts, and the rest.
    profiles = tuple(
        tuple((1, tokens, width) for tokens in (first, last, last))
        for first, last in ((1, length // 2), (length // 2 + 1, length))
    )
    built.engines["text_encoder"] = row.model_copy(
        update={**dynamic, "profiles": {"embeddings": profiles}}
    )
    modulation = built.add(
        "time_tables",
        module.embed.time_tables,
        {"timestep": zeros(1, dtype=torch.float32)},
        ["temb", "timestep_proj"],
        component="dit",
        runs="schedule",
    )
    names = [f"blocks.{i}.attn2.{part}" for i in range(config.num_layers) for part in "kv"]
    embeds = {"encoder_hidden_states": zeros(1, length, config.text_dim)}
    kv = built.add("text_kv", text_kv, embeds, names, component="dit", runs="prompt")
    step = {"latents": zeros(*shape.latents(config.in_channels)), **modulation, **kv}
    built.add("dit", velocity, step, ["velocity"], component="dit", runs="step")

    assert checkpoint.decoder is not None
    assert checkpoint.decoder_config is not None
    decoder = load_decoder(checkpoint.decoder, checkpoint.decoder_config, torch.float16).to(device)
    height, width = shape.latent_height, shape.latent_width
    memories = {
        f"memory_{index}": zeros(*size, dtype=torch.float16)
        for index, size in enumerate(decoder.memory_shapes(height, width))
    }
    channels = checkpoint.decoder_config.latent_channels
    latent = {"latent": zeros(1, channels, height, width, dtype=torch.float16), **memories}
    results = ["frames", *(f"{name}_out" for name in memories)]
    built.add(
        "decoder", StreamingStep(decoder), latent, results, component="decoder", runs="latent"
    )
    return built


def bundle_of(built: Built, shape: VideoShape) -> Bundle:
    """A bundle that exists as a manifest only."""
    model = Model(
        name="torch modules",
        recipe="bf16",
        shape=shape,
        dit=DiTConfig(),
        decoder=None,
        text_encoder=None,
        default_sampler="unipc",
    )
    manifest = Manifest(
        tool_version="0",
        versions={},
        target="rtx5090",
        backend="tensorrt-rtx",
        attention="native",
        fusion="none",
        sampler="unipc",
        samplers=(SAMPLERS["unipc"], SAMPLERS["dmd"]),
        components=("dit", "decoder", "text_encoder"),
        onnx=OnnxManifest(tool_version="0", model=model, graphs={}),
        engines=built.engines,
        files={e.file: FileRecord(sha256="", bytes=0) for e in built.engines.values()},
        build=BuildRecord(seconds=0, peak_rss_bytes=0),
    )
    return Bundle(Path(tempfile.mkdtemp()), manifest)


def check() -> Record:
    """Play the tiny model through the runtime's CUDA device.

    Needs the plugin library (``FASTWAN_PLUGIN_LIBRARY`` or build/plugins) and ``cuda-bindings``.

    Raises:
        RuntimeError: frames of two modes differ, or the loop allocates.
    """
    folder = Path(tempfile.mkdtemp()) / "tiny"
    make_checkpoint(folder, size="tiny")
    checkpoint = open_checkpoint(folder, components=("dit", "decoder", "text_encoder"))
    shape = checkpoint.default_shape
    built = build(checkpoint, shape)
    bundle = bundle_of(built, shape)
    device = CudaDevice()
    platform = Platform(
        device,
        PluginKernels(PluginLibrary()),
        lambda _: {
            name: TorchEngine(built.engines[name], f) for name, f in built.functions.items()
        },
    )
    record: Record = {"device": device.info.name, "errors": _errors(device)}
    for sampler in ("unipc", "dmd"):
        record[sampler] = _play(platform, bundle, sampler)
    return record


def _play(platform: Platform, bundle: Bundle, sampler: str) -> Record:
    session = Session(platform, bundle, schedule_of(SAMPLERS[sampler]))
    with warnings.catch_warnings():
        # A capture that fails is a finding here, not a way on.
        warnings.simplefilter("error", RuntimeWarning)
        begin = time.perf_counter()
        player = session.load()
        load_seconds = time.perf_counter() - begin
    recording = session.recording
    generator = torch.Generator().manual_seed(1)
    tokens, width = 19, recording.prompt_embeds.shape[2]
    prompts = [torch.randn(1, n, width, generator=generator).numpy() for n in (tokens, LONG)]
    hidden, longer = map(session.encode, prompts)
    if not np.array_equal(session.encode(prompts[0]), hidden) or longer.shape[1] != LONG:
        raise RuntimeError("a prompt of another profile changes what follows")
    embeds = np.zeros(recording.prompt_embeds.shape, np.float32)
    embeds[:, :tokens] = hidden.astype(np.float32)
    session.prepare(embeds)
    noises = draw(recording.latents.shape, recording.schedule, generator_for(None, 1024))

    graphed = session.video(noises).copy()
    stages = session.milliseconds()
    player.enqueue(recording.video)
    player.synchronize()
    assert recording.frames is not None
    eager = player.memory.view(recording.frames).copy()
    clean = session.denoise(noises)
    divided = session.decode(clean).copy()
    for name, frames in (("eager", eager), ("step by step", divided)):
        if not np.array_equal(graphed, frames):
            raise RuntimeError(f"{sampler}: frames of the graph differ from {name} ones")
    if graphed.min() == graphed.max():
        raise RuntimeError("the video is flat")
    free, allocated = platform.device.free_bytes(), _allocated()
    launch, whole = [], []
    for _ in range(20):
        begin = time.perf_counter()
        player.run(recording.video)
        launch.append(time.perf_counter() - begin)
        player.synchronize()
        whole.append(time.perf_counter() - begin)
    if platform.device.free_bytes() != free or _allocated() != allocated:
        raise RuntimeError("the loop allocates")
    result = {
        "frames_identical_to_eager": True,
        "frames_identical_step_by_step": True,
        "allocations_in_replay": 0,
        "load_seconds": load_seconds,
        "stages_ms": stages,
        "launch_us": statistics.median(launch) * 1e6,
        "video_ms": statistics.median(whole) * 1e3,
        "plan": session.plan.device_bytes.model_dump(),
    }
    session.close()
    return result


def _allocated() -> int:
    return int(torch.cuda.memory_stats()["allocation.all.allocated"])


def _errors(device: CudaDevice) -> Record:
    """Kinds of the errors that the driver really gives; the device stays usable after each."""
    stream = device.new_stream()
    found: Record = {}

    def kind(call: Callable[[], object]) -> str:
        try:
            call()
        except DeviceError as error:
            return f"{error.kind}: {error}"
        return "no error"

    found["too large an allocation"] = kind(lambda: device.allocate(1 << 45))
    device.begin_capture(stream)
    found["a wait inside a capture"] = kind(lambda: device.synchronize(stream))
    found["the end of that capture"] = kind(lambda: device.end_capture(stream))
    device.abandon_capture(stream)
    address = device.allocate(512)
    device.zero(address, 512, stream)
    device.synchronize(stream)
    device.free(address)
    if not found["too large an allocation"].startswith("memory"):
        raise RuntimeError(f"out of memory is seen as {found['too large an allocation']}")
    if not found["a wait inside a capture"].startswith("capture"):
        raise RuntimeError(f"a broken capture is seen as {found['a wait inside a capture']}")
    return found
