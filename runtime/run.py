"""One video in the making: a request, carried out on the components of a bundle."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from fastwan.progress import Progress
from fastwan.runtime.arguments import (
    check_shape,
    check_text_length,
    draw_noises,
    latents_like,
    padded_embeds,
)
from fastwan.runtime.call import Call
from fastwan.runtime.callback import after_callback
from fastwan.runtime.components import Components
from fastwan.runtime.device.choice import DeviceChoice
from fastwan.runtime.guidance import check_negative
from fastwan.runtime.model.checks import check_finite
from fastwan.runtime.model.executor import Array
from fastwan.runtime.model.given import tensor_or_array
from fastwan.runtime.model.noise import Noise, noise_of
from fastwan.runtime.model.schedule import Schedule
from fastwan.runtime.outputs import Collector, PipelineOutput
from fastwan.runtime.prompt_cache import PromptCache
from fastwan.runtime.request import FramesCallback, Request
from fastwan.runtime.timings import Timings


class _Stopped(Exception):
    """The call was stopped after a step.

    Attributes:
        latents: after that step.
    """

    def __init__(self, latents: Array) -> None:
        super().__init__()
        self.latents = latents


@dataclass(eq=False)
class Run:
    """A video that is made while the components' turn is held.

    Attributes:
        call: the state of the call that this is a part of.
        timings: measured seconds by stage.
    """

    request: Request
    schedule: Schedule
    components: Components
    prompts: PromptCache
    call: Call
    progress: Progress
    timings: Timings = field(default_factory=Timings)
    _begin: float = field(init=False)

    def open(self) -> Array:
        """Open what the request needs; the prompt's embeddings [1, text_length, text_dim].

        Raises:
            BadInput: an argument that the bundle cannot serve.
            VerificationFailed: a file of the bundle differs from its hash, or its text encoder
                makes NaN.
        """
        request = self.request
        self._begin = time.perf_counter()
        check_negative(self.schedule, request)
        check_shape(
            self.components.shape,
            height=request.height,
            width=request.width,
            num_frames=request.num_frames,
        )
        if request.max_sequence_length is not None:
            check_text_length(self.components.text_shape[1], request.max_sequence_length)
        wanted = (
            (request.prompt, request.prompt_embeds),
            (request.negative_prompt or "", request.negative_prompt_embeds),
        )[: self.schedule.prompts]
        with self.timings.measure("load"):
            text = any(given is None for _, given in wanted)
            self.components.load(self.schedule, text=text, decoder=request.decoded)
        self.call.steps = len(self.schedule.steps)
        self.call.timestep = None
        self.call.guidance = self.schedule.guidance
        self.call.embeds = tuple(self._embeds(*each) for each in wanted)
        return self.call.embeds[0]

    def _embeds(self, prompt: str | None, given: object) -> Array:
        if given is not None:
            return padded_embeds(given, self.components.text_shape)
        assert prompt is not None
        encoder = self.components.text_encoder
        # Tells of a prompt that is too long, also where its embeddings are known.
        encoder.token_ids(prompt)
        self.progress.start("text")
        with self.timings.measure("text"):
            embeds = self.prompts.get(prompt, encoder)
        self.progress.finish()
        return embeds

    def _noises(self) -> list[Array]:
        with self.timings.measure("noise"):
            components = self.components
            return draw_noises(
                components.latents_shape, self.schedule, self.request, components.normals
            )

    def frames(self) -> Iterator[Array]:
        """Frames in order, uint8 [H, W, 3], each valid until the next.

        Where the components make steps and frames as one, nothing can stop or look in between; a
        callback after steps divides them.
        """
        components, request = self.components, self.request
        if not components.fused or request.on_step is not None or self.call.stopped:
            latents = self.latents()
            self.progress.start("decode", components.video_shape[0], "frames")
            decoded = components.decode(latents, self.schedule)
            return self._counted(self.timings.measured("decode", decoded))
        noises = self._noises()
        self.progress.start("video", components.video_shape[0], "frames")
        made = components.video(self.call.embeds, noises, self.schedule, self.timings)
        return self._counted(made)

    def _counted(self, chunks: Iterator[Array]) -> Iterator[Array]:
        return _counted(self._since_begin(chunks), self.progress, self.request.on_frames)

    def _since_begin(self, chunks: Iterator[Array]) -> Iterator[Array]:
        for index, chunk in enumerate(chunks):
            if index == 0:
                self.timings["first_frame"] = time.perf_counter() - self._begin
            yield chunk

    def latents(self) -> Array:
        """Clean latents [1, C, T, h, w], fp32; those so far where the call was stopped.

        Raises:
            BadInput: latents or a callback's result that cannot be used.
            VerificationFailed: a step makes NaN or Inf.
        """
        noises = self._noises()
        if self.call.stopped:
            return noises[0]
        self.progress.start("denoise", len(self.schedule.steps), "steps")
        stopwatch = _Stopwatch(self.timings)
        try:
            clean = self.components.denoise(
                self.call.embeds,
                noises,
                self.schedule,
                self.timings,
                partial(self._after, stopwatch),
            )
        except _Stopped as stopped:
            clean = stopped.latents
        self.progress.finish()
        return clean

    def _after(self, stopwatch: _Stopwatch, step: int, timestep: int, state: Array) -> Array | None:
        """Look at a step's latents and ask the callback; latents to go on with, None for these."""
        stopwatch.stop(step)
        check_finite(state, f"after step {step} at timestep {timestep}")
        self.progress.advance()
        self.call.timestep = timestep
        replaced = None
        if self.request.on_step is not None:
            tensor = tensor_or_array(state)
            replaced = after_callback(self.request.on_step(step, timestep, tensor), tensor)
        if self.call.stopped:
            raise _Stopped(state if replaced is None else replaced)
        stopwatch.start()
        return replaced


def make_videos(runs: Sequence[Run], choice: DeviceChoice) -> PipelineOutput:
    """The videos of one call, one after the other; no further one once it is stopped.

    Args:
        runs: of one output type.
        choice: the device that they run on.
    """
    output_type = runs[0].request.output_type
    collected, timings, seeds = Collector(len(runs), output_type), Timings(), []
    noise: list[Noise] = []
    for run in runs:
        request, components = run.request, run.components
        run.open()
        if request.decoded:
            collected.add(components.video_shape, run.frames())
        else:
            collected.add(components.latents_shape[1:], run.latents()[0])
        timings.add(run.timings)
        seeds.append(request.seed if request.generator is None else None)
        noise.append(noise_of(request.generator, request.latents))
        if run.call.stopped:
            break
    return PipelineOutput(
        collected.result(),
        timings,
        choice.name,
        choice.note,
        output_type,
        tuple(seeds),
        tuple(noise),
    )


def decode_latents(
    components: Components,
    schedule: Schedule,
    latents: object,
    progress: Progress,
    on_frames: FramesCallback | None,
) -> Iterator[Array]:
    """Frames of clean latents in order, uint8 [H, W, 3], each valid until the next.

    Args:
        latents: normalised, [1, C, T, h, w].
        progress: told of each frame.
        on_frames: called with the frames of each latent as they are decoded, or None.

    Raises:
        BadInput: latents of another shape, or no decoder in the bundle.
        VerificationFailed: a file of the bundle differs from its hash.
    """
    components.load(schedule, text=False, decoder=True)
    given = latents_like(latents, components.latents_shape)
    progress.start("decode", components.video_shape[0], "frames")
    frames = _counted(components.decode(given, schedule), progress, on_frames)
    if components.fused:
        # The next turn writes over the device's own.
        frames = iter([frame.copy() for frame in frames])
    return frames


def _counted(
    chunks: Iterator[Array], progress: Progress, on_frames: FramesCallback | None
) -> Iterator[Array]:
    """Frames of `chunks`, with the caller told of each chunk and its progress of each frame."""
    for chunk in chunks:
        if on_frames is not None:
            on_frames(chunk.copy())
        for frame in chunk:
            progress.advance()
            yield frame
    progress.finish()


class _Stopwatch:
    """Times the steps; what a callback takes belongs to none."""

    def __init__(self, timings: Timings) -> None:
        self._timings = timings
        self._begin: float | None = None
        self._created = time.perf_counter()

    def start(self) -> None:
        self._begin = time.perf_counter()

    def stop(self, step: int) -> None:
        begin = self._begin
        if begin is None:
            # The keys and values of the prompt were computed first.
            begin = self._created + self._timings["text_kv"]
        self._timings[f"step_{step}"] = time.perf_counter() - begin
