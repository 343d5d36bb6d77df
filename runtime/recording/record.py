"""One video of a bundle as operations on streams, from its manifest alone.

The same `DiT`, `Decoder` and `denoise` as on the CPU run here over executors that record.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial

import ml_dtypes  # noqa: F401  registers bfloat16 with numpy

from fastwan.errors import BadInput
from fastwan.manifest import Cadence, Engine, Manifest, TensorSpec
from fastwan.runtime.model.decode import Decoder
from fastwan.runtime.model.dit import DiT
from fastwan.runtime.model.loop import denoise, guided
from fastwan.runtime.model.schedule import Schedule
from fastwan.runtime.recording.executor import RecordingExecutor
from fastwan.runtime.recording.fallbacks import fallbacks_of
from fastwan.runtime.recording.operations import Operation
from fastwan.runtime.recording.recorder import COPY, Recorder, Stage
from fastwan.runtime.recording.tensors import Tensor, allocate
from fastwan.runtime.recording.text import TextBuffers, text_buffers

_BEFORE_VIDEO = ("tables", "text", "text_kv")


@dataclass(frozen=True)
class Chunk:
    """Frames that are decoded together.

    Attributes:
        frames: pinned uint8 [n, H, W, 3], a part of the video's.
        arrived: pinned int32 [1]; not 0 once the frames are there.
    """

    frames: Tensor
    arrived: Tensor


@dataclass
class Recording:
    """A video as stages, those it has parts for.

    ``tables`` runs once, when the bundle is loaded, and its results stay; ``text`` and ``text_kv``
    run once a prompt; ``step_0`` .. and ``decode`` are the video.

    Attributes:
        calls: components in the order in which they are called, and each combination.
        text: None in a bundle without a text encoder.
        embeds: pinned [1, text_length, text_dim], read by ``text_kv``: of the prompt and, where
            the sampler is guided, of the negative prompt.
        noises: pinned, fp32, the initial latents and the fresh noise of the steps.
        states: latents after each step, fp32 on the device.
        latents: pinned, for latents that go in or out between stages; ``decode`` copies the ones
            that it decodes.
        frames: pinned [F, H, W, 3] uint8; None without a decoder.
        chunks: parts of `frames` in the order in which they are copied to the host, each with the
            pinned word that says that it is there.
        fallbacks: kinds of regions that other engines are played in place of.
        processors: multiprocessors that regions are launched for; 0: those of the device.
    """

    manifest: Manifest
    schedule: Schedule
    stages: list[Stage]
    calls: list[str]
    events: int
    text: TextBuffers | None
    embeds: list[Tensor]
    noises: list[Tensor]
    states: list[Tensor]
    latents: Tensor
    frames: Tensor | None = None
    chunks: list[Chunk] = field(default_factory=list)
    fallbacks: frozenset[str] = frozenset()
    processors: int = 0

    @property
    def inputs(self) -> list[Tensor]:
        """Pinned tensors that the host writes before a play."""
        text = [] if self.text is None else [self.text.host_in]
        return [*text, *self.embeds, *self.noises]

    @property
    def prompt_embeds(self) -> Tensor:
        """Those of the prompt."""
        return self.embeds[0]

    @property
    def operations(self) -> list[Operation]:
        """Of all stages, in order."""
        return [operation for stage in self.stages for operation in stage.operations]

    @property
    def video(self) -> list[Stage]:
        """What one launch covers: every step and the decoder."""
        return [stage for stage in self.stages if stage.name not in _BEFORE_VIDEO]


def record(
    manifest: Manifest,
    schedule: Schedule,
    fallbacks: Collection[str] = (),
    processors: int = 0,
) -> Recording:
    """Record a video.

    Args:
        fallbacks: kinds of regions that the bundle's own engines are played in place of.
        processors: multiprocessors that regions are launched for, see `RegionOp.on`.

    Raises:
        BadInput: no transformer in the bundle, or parts that do not fit together.
    """
    recorder = Recorder()
    dit = _dit(manifest, recorder, fallbacks, processors)
    recorder.begin("tables")
    for step in schedule.steps:
        dit.tables(step.timestep)
    recorder.end()
    encoder = _engines(manifest, "text_encoder")
    text = text_buffers(encoder) if encoder else None
    if text is not None:
        text.record(recorder, text.longest)
    recorder.begin("text_kv")
    embeds, contexts = [], []
    for name in ("prompt_embeds", "negative_prompt_embeds")[: schedule.prompts]:
        text_spec = TensorSpec(name=name, dtype=dit.text_spec.dtype, shape=dit.text_shape)
        embeds.append(allocate(text_spec, name=f"{name}.host", space="host"))
        copied = allocate(text_spec)
        recorder.copy(embeds[-1], copied)
        contexts.append(dit.prepare(copied))
    recorder.end()

    latents = TensorSpec(name="latents", dtype="float32", shape=dit.latents_shape)
    recorder.begin("step_0")
    noises, drawn = [], []
    for index in range(1 + schedule.noises):
        noises.append(allocate(latents, name=f"noise_{index}.host", space="host"))
        drawn.append(allocate(latents, name=f"noise_{index}"))
        recorder.copy(noises[-1], drawn[-1])
    states: list[Tensor] = []

    def on_step(index: int, _timestep: int, state: Tensor) -> None:
        states.append(state)
        recorder.end()
        if index + 1 < len(schedule.steps):
            recorder.begin(f"step_{index + 1}")

    clean = denoise(
        guided(
            [partial(dit.velocity, context=each) for each in contexts],
            schedule.guidance,
            combine=recorder.combine,
        ),
        drawn[0],
        schedule,
        drawn[1:],
        combine=recorder.combine,
        on_step=on_step,
    )
    out = allocate(latents, name="latents.host", space="host")
    frames, chunks = _decode(manifest, recorder, clean, out)
    return Recording(
        manifest=manifest,
        schedule=schedule,
        frames=frames,
        chunks=chunks,
        stages=recorder.stages,
        calls=recorder.calls,
        events=recorder.events,
        text=text,
        embeds=embeds,
        noises=noises,
        states=states,
        latents=out,
        fallbacks=frozenset(fallbacks),
        processors=processors,
    )


def _dit(
    manifest: Manifest, recorder: Recorder, fallbacks: Collection[str], processors: int
) -> DiT[Tensor]:
    engines = _engines(manifest, "dit")
    if not engines:
        raise BadInput("bundle has no transformer", where="manifest.json", fix="build it with dit")

    def those(cadence: Cadence) -> dict[str, Engine]:
        return {name: engine for name, engine in engines.items() if engine.runs == cadence}

    return DiT(
        RecordingExecutor(recorder, "time_tables", those("schedule"), keep=True),
        RecordingExecutor(recorder, "text_kv", those("prompt"), keep=True),
        RecordingExecutor(
            recorder,
            "dit",
            those("step"),
            manifest.regions,
            fallbacks=fallbacks_of(manifest, fallbacks),
            processors=processors,
        ),
    )


def _decode(
    manifest: Manifest, recorder: Recorder, latents: Tensor, out: Tensor
) -> tuple[Tensor | None, list[Chunk]]:
    engines = _engines(manifest, "decoder")
    if not engines:
        return None, []
    recorder.begin("decode")
    # A frame does not show that it was made of NaN: the host looks at what it was made of.
    recorder.copy(latents, out)
    decoder = Decoder(RecordingExecutor(recorder, "decoder", engines))
    shape = (decoder.num_frames(latents.shape[2]), *decoder.frame_shape)
    video = TensorSpec(name="frames.host", dtype="uint8", shape=shape)
    frames = allocate(video, space="host")
    words = TensorSpec(name="arrived.host", dtype="int32", shape=(latents.shape[2],))
    arrived = allocate(words, space="host")
    chunks: list[Chunk] = []
    made = 0
    for index, source in enumerate(decoder.chunks(latents)):
        end = made + source.shape[0]
        chunk = Chunk(frames[made:end], arrived[index : index + 1])
        recorder.copy(source, chunk.frames, stream=COPY)
        recorder.signal(chunk.arrived, stream=COPY)
        chunks.append(chunk)
        made = end
    recorder.end()
    return frames, chunks


def _engines(manifest: Manifest, component: str) -> dict[str, Engine]:
    return {n: engine for n, engine in manifest.engines.items() if engine.component == component}
