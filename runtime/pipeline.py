"""`FastWanPipeline`: a bundle, called like a diffusers pipeline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from fastwan.bundle import Bundle, open_bundle
from fastwan.errors import BadInput, EnvironmentLacks
from fastwan.progress import Progress, Quiet
from fastwan.runtime.arguments import check_shape, draw_noises, padded_embeds, replacement
from fastwan.runtime.components import Components
from fastwan.runtime.cpu.components import CpuComponents
from fastwan.runtime.device.choice import DeviceChoice, resolve_device
from fastwan.runtime.model.executor import Array
from fastwan.runtime.model.samplers import schedule_of
from fastwan.runtime.model.schedule import Schedule
from fastwan.runtime.outputs import OutputType, PipelineOutput, collect_frames
from fastwan.runtime.prompt_cache import PromptCache
from fastwan.runtime.request import Request
from fastwan.runtime.timings import Timings

if TYPE_CHECKING:
    import torch

StepCallback = Callable[["FastWanPipeline", int, int, dict[str, Any]], "dict[str, Any] | None"]


class FastWanPipeline:
    """Text to video from an engine bundle; make one with `from_bundle`."""

    def __init__(
        self,
        bundle: Bundle,
        device: DeviceChoice,
        components: Components,
        prompts: PromptCache | None = None,
    ) -> None:
        self.bundle = bundle
        self.device = device
        self.components = components
        self.prompts = prompts or PromptCache.of(bundle)
        self._closed = False

    @classmethod
    def from_bundle(
        cls,
        path: Path | str,
        device: str = "auto",
        *,
        threads: int = 1,
        prompt_cache: Path | None = None,
    ) -> FastWanPipeline:
        """Open a bundle on "auto", "cpu" or "cuda".

        Args:
            path: folder that ``build-engine`` wrote.
            device: "auto" takes a GPU that can run the engines, and the CPU without one.
            threads: CPU threads inside an operator; another number may change the last bits.
            prompt_cache: folder that keeps the embeddings of prompts.

        Raises:
            BadInput: no bundle, or a device of another name.
            EnvironmentLacks: the device cannot be used.
        """
        resolved = resolve_device(device)
        bundle = open_bundle(path)
        prompts = PromptCache.of(bundle, prompt_cache)
        if resolved.name == "cuda":
            from fastwan.runtime.device.components import DeviceComponents
            from fastwan.runtime.device.platforms import cuda_platform

            try:
                on_gpu = DeviceComponents(bundle, cuda_platform(bundle))
                return cls(bundle, resolved, on_gpu, prompts)
            except EnvironmentLacks as error:
                if device == "cuda":
                    raise
                resolved = DeviceChoice("cpu", f"{error.what}: running the CPU reference")
        return cls(bundle, resolved, CpuComponents(bundle, threads=threads), prompts)

    def __call__(
        self,
        prompt: str | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        generator: torch.Generator | None = None,
        seed: int = 1024,
        latents: torch.Tensor | Array | None = None,
        prompt_embeds: torch.Tensor | Array | None = None,
        output_type: OutputType = "np",
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        sampler: str | None = None,
        progress: Progress | None = None,
    ) -> PipelineOutput:
        """Make one video.

        Args:
            prompt: the text; or else give `prompt_embeds`.
            height: pixels; None, or what the bundle was built for.
            width: likewise.
            num_frames: likewise.
            generator: CPU generator of the noise; or else `seed` makes one.
            latents: initial noise [1, C, T, h, w] instead of drawn noise.
            prompt_embeds: [1, up to text_length, text_dim]; padded with zero rows.
            output_type: "np", "pil", "pt" or "latent"; see `PipelineOutput`.
            callback_on_step_end: called after each step as (pipeline, step, timestep,
                {"latents": fp32 tensor}); the dictionary it returns may replace the latents.
            sampler: one of the bundle's; by default the first.
            progress: told of stages and steps.

        Raises:
            BadInput: an argument that the bundle cannot serve.
            VerificationFailed: a file of the bundle differs from its hash.
        """
        if unknown := set(callback_on_step_end_tensor_inputs) - {"latents"}:
            raise BadInput(
                f"callback inputs {sorted(unknown)} do not exist",
                where="callback_on_step_end_tensor_inputs",
                fix="only latents is offered",
            )

        def on_step(step: int, timestep: int, latents: torch.Tensor) -> dict[str, Any] | None:
            assert callback_on_step_end is not None
            return callback_on_step_end(self, step, timestep, {"latents": latents})

        request = Request(
            prompt=prompt,
            prompt_embeds=prompt_embeds,
            height=height,
            width=width,
            num_frames=num_frames,
            generator=generator,
            seed=seed,
            latents=latents,
            output_type=output_type,
            on_step=None if callback_on_step_end is None else on_step,
            sampler=sampler,
        )
        return self.make(request, progress=progress)

    def make(self, request: Request, *, progress: Progress | None = None) -> PipelineOutput:
        """Make the video of a request; arguments and errors as of a call.

        Calls of several threads are served one after the other on a GPU and side by side on the
        CPU, each as if it were alone.
        """
        progress, timings = progress or Quiet(), Timings()
        with self._turn():
            embeds = self._begin(request, timings, progress)
            frames: Any
            if request.decoded:
                made = self._frames(embeds, request, timings, progress)
                frames = collect_frames(made, self.components.video_shape, request.output_type)
            else:
                import torch

                frames = torch.from_numpy(self._denoise(embeds, request, timings, progress))
        return PipelineOutput(frames, timings, self.device.name, self.device.note)

    def frames(
        self,
        request: Request,
        *,
        timings: Timings | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Array]:
        """Frames of a video in order, uint8 [H, W, 3]; a frame is valid until the next.

        On a GPU the steps and the decoder are one launch; a callback needs the host between two
        steps and divides it. Nothing begins before the first frame is asked for. Errors as of a
        call.

        Args:
            request: what to make.
            timings: gets the measured seconds of the stages.
            progress: told of stages and steps.
        """
        timings = Timings() if timings is None else timings
        progress = progress or Quiet()
        with self._turn():
            embeds = self._begin(request, timings, progress)
            made = self._frames(embeds, request, timings, progress)
            if self.components.fused:
                # The next turn writes over the device's own.
                made = iter([frame.copy() for frame in made])
        yield from made

    def load(self, *, text: bool = True, decoder: bool = True, sampler: str | None = None) -> None:
        """Open what a video needs beforehand, so that the first one takes no longer than others.

        Raises:
            BadInput: a graph is missing or unusable.
            VerificationFailed: a file differs from its hash.
            EnvironmentLacks: the device cannot hold or run the engines.
        """
        with self._turn():
            self.components.load(self.schedule(sampler), text=text, decoder=decoder)

    def embed(self, prompt: str, *, progress: Progress | None = None) -> Array:
        """Prompt embeddings [1, text_length, text_dim] in the dtype of the encoder.

        Raises:
            BadInput: no text encoder in the bundle.
        """
        with self._turn():
            return self._embed(Request(prompt=prompt), Timings(), progress or Quiet())

    def schedule(self, sampler: str | None = None) -> Schedule:
        """Schedule of one of the bundle's samplers, by default the first.

        Raises:
            BadInput: the bundle has no such sampler.
        """
        return schedule_of(self.bundle.manifest.sampler_spec(sampler))

    def close(self) -> None:
        """Give back memory, engines and sessions. A closed pipeline makes no more videos."""
        if not self._closed:
            with self.components.turn():
                self._closed = True
                self.components.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self.components.turn():
            if self._closed:
                raise BadInput(
                    "the pipeline is closed", where=str(self.bundle.root), fix="open the bundle"
                )
            yield

    def _begin(self, request: Request, timings: Timings, progress: Progress) -> Array:
        """Open what a request needs; its embeddings."""
        check_shape(
            self.components.shape,
            height=request.height,
            width=request.width,
            num_frames=request.num_frames,
        )
        schedule = self.schedule(request.sampler)
        with timings.measure("load"):
            text = request.prompt is not None
            self.components.load(schedule, text=text, decoder=request.decoded)
        return self._embed(request, timings, progress)

    def _embed(self, request: Request, timings: Timings, progress: Progress) -> Array:
        if request.prompt is None:
            assert request.prompt_embeds is not None
            return padded_embeds(request.prompt_embeds, self.components.text_shape)
        progress.start("text")
        with timings.measure("text"):
            embeds = self.prompts.get(request.prompt, self.components.text_encoder.encode)
        progress.finish()
        return embeds

    def _denoise(
        self, embeds: Array, request: Request, timings: Timings, progress: Progress
    ) -> Array:
        import torch

        schedule = self.schedule(request.sampler)
        noises = draw_noises(self.components.latents_shape, schedule, request)
        begin: float | None = None

        def on_step(index: int, timestep: int, state: Array) -> Array | None:
            nonlocal begin
            before = started + timings["text_kv"] if begin is None else begin
            timings[f"step_{index}"] = time.perf_counter() - before
            progress.advance()
            replaced = None
            if request.on_step is not None:
                returned = request.on_step(index, timestep, torch.from_numpy(state))
                replaced = replacement(returned, state)
            begin = time.perf_counter()
            return replaced

        progress.start("denoise", len(schedule.steps), "steps")
        started = time.perf_counter()
        clean = self.components.denoise(embeds, noises, schedule, timings, on_step)
        progress.finish()
        return clean

    def _frames(
        self, embeds: Array, request: Request, timings: Timings, progress: Progress
    ) -> Iterator[Array]:
        schedule = self.schedule(request.sampler)
        if not self.components.fused or request.on_step is not None:
            latents = self._denoise(embeds, request, timings, progress)
            return self._decode(latents, schedule, timings, progress)
        noises = draw_noises(self.components.latents_shape, schedule, request)
        progress.start("video", self.components.video_shape[0], "frames")
        return _counted(self.components.video(embeds, noises, schedule, timings), progress)

    def _decode(
        self, latents: Array, schedule: Schedule, timings: Timings, progress: Progress
    ) -> Iterator[Array]:
        progress.start("decode", self.components.video_shape[0], "frames")
        frames = self.components.decode(latents, schedule)
        return _counted(timings.measured("decode", frames), progress)


def _counted(frames: Iterator[Array], progress: Progress) -> Iterator[Array]:
    """`frames`, each told to `progress`, and the end of its stage behind the last."""
    for frame in frames:
        progress.advance()
        yield frame
    progress.finish()
