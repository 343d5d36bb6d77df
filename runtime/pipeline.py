"""`FastWanPipeline`: a bundle, called like a diffusers pipeline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastwan.bundle import Bundle, open_bundle
from fastwan.errors import BadInput, EnvironmentLacks
from fastwan.progress import Progress, Quiet
from fastwan.runtime.arguments import check_shape, draw_noises, padded_embeds, replacement
from fastwan.runtime.components import Components
from fastwan.runtime.cpu.components import CpuComponents
from fastwan.runtime.device.choice import DeviceChoice, resolve_device
from fastwan.runtime.model.executor import Array
from fastwan.runtime.model.sampler import Schedule, schedule_for
from fastwan.runtime.outputs import (
    OUTPUT_TYPES,
    OutputType,
    PipelineOutput,
    collect_frames,
)
from fastwan.runtime.prompt_cache import PromptCache
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
            height, width, num_frames: None, or what the bundle was built for.
            generator: CPU generator of the noise; or else `seed` makes one.
            latents: initial noise [1, C, T, h, w] instead of drawn noise.
            prompt_embeds: [1, up to text_length, text_dim]; padded with zero rows.
            output_type: "np", "pil", "pt" or "latent"; see `PipelineOutput`.
            callback_on_step_end: called after each step as (pipeline, step, timestep,
                {"latents": fp32 tensor}); the dictionary it returns may replace the latents.
            sampler: "unipc" or "dmd" instead of the bundle's.
            progress: told of stages and steps.

        Raises:
            BadInput: an argument that the bundle cannot serve.
            VerificationFailed: a file of the bundle differs from its hash.
        """
        if output_type not in OUTPUT_TYPES:
            raise BadInput(
                f"unknown output_type {output_type!r}", fix="one of " + ", ".join(OUTPUT_TYPES)
            )
        if unknown := set(callback_on_step_end_tensor_inputs) - {"latents"}:
            raise BadInput(
                f"callback inputs {sorted(unknown)} do not exist",
                where="callback_on_step_end_tensor_inputs",
                fix="only latents is offered",
            )
        built = self.components.shape
        check_shape(built, height=height, width=width, num_frames=num_frames)
        timings = Timings()
        decoded = output_type != "latent"
        self.load(text=prompt is not None, decoder=decoded, sampler=sampler, timings=timings)
        embeds = self.embed(prompt, prompt_embeds, timings=timings, progress=progress)
        run: dict[str, Any] = {
            "generator": generator,
            "seed": seed,
            "latents": latents,
            "callback_on_step_end": callback_on_step_end,
            "sampler": sampler,
            "timings": timings,
            "progress": progress,
        }
        frames: Any
        if decoded:
            made = self.frames(embeds, **run)
            frames = collect_frames(made, self.components.video_shape, output_type)
        else:
            import torch

            frames = torch.from_numpy(self.denoise(embeds, **run))
        return PipelineOutput(frames, timings, self.device.name, self.device.note)

    def load(
        self,
        *,
        text: bool = True,
        decoder: bool = True,
        sampler: str | None = None,
        timings: Timings | None = None,
    ) -> None:
        """Open the components that a video needs, those that are not open yet.

        Raises:
            BadInput, VerificationFailed: a graph is missing, unusable or differs from its hash.
            EnvironmentLacks: the device cannot hold or run the engines.
        """
        with (timings if timings is not None else Timings()).measure("load"):
            self.components.load(self.schedule(sampler), text=text, decoder=decoder)

    def schedule(self, sampler: str | None = None) -> Schedule:
        """Schedule of `sampler`, by default the bundle's."""
        return schedule_for(sampler or self.bundle.manifest.sampler)

    def embed(
        self,
        prompt: str | None,
        prompt_embeds: torch.Tensor | Array | None = None,
        *,
        timings: Timings | None = None,
        progress: Progress | None = None,
    ) -> Array:
        """Prompt embeddings [1, text_length, text_dim], from a prompt or as given.

        Raises:
            BadInput: neither or both, or embeddings of a wrong shape.
        """
        if (prompt is None) == (prompt_embeds is None):
            raise BadInput("give either prompt or prompt_embeds", where="prompt")
        if prompt_embeds is not None:
            return padded_embeds(prompt_embeds, self.components.text_shape)
        if not isinstance(prompt, str):
            raise BadInput("prompt must be one string", where="prompt", fix="call once a prompt")
        progress = progress or Quiet()
        progress.start("text")
        with (timings if timings is not None else Timings()).measure("text"):
            embeds = self.prompts.get(prompt, self.components.text_encoder.encode)
        progress.finish()
        return embeds

    def denoise(
        self,
        prompt_embeds: Array,
        *,
        generator: torch.Generator | None = None,
        seed: int = 1024,
        latents: torch.Tensor | Array | None = None,
        callback_on_step_end: StepCallback | None = None,
        sampler: str | None = None,
        timings: Timings | None = None,
        progress: Progress | None = None,
    ) -> Array:
        """Clean latents [1, C, T, h, w], fp32, from the embeddings of `embed`.

        Arguments and errors as of a call.
        """
        import torch

        timings = Timings() if timings is None else timings
        progress = progress or Quiet()
        schedule = self.schedule(sampler)
        noises = draw_noises(self.components.latents_shape, schedule, generator, seed, latents)
        with timings.measure("text_kv"):
            self.components.prepare(prompt_embeds, schedule)
        begin = time.perf_counter()

        def on_step(index: int, timestep: int, state: Array) -> Array | None:
            nonlocal begin
            timings[f"step_{index}"] = time.perf_counter() - begin
            progress.advance()
            replaced = None
            if callback_on_step_end is not None:
                tensors = {"latents": torch.from_numpy(state)}
                replaced = replacement(callback_on_step_end(self, index, timestep, tensors), state)
            begin = time.perf_counter()
            return replaced

        progress.start("denoise", len(schedule.steps), "steps")
        clean = self.components.denoise(noises, schedule, on_step)
        progress.finish()
        return clean

    def frames(
        self,
        prompt_embeds: Array,
        *,
        generator: torch.Generator | None = None,
        seed: int = 1024,
        latents: torch.Tensor | Array | None = None,
        callback_on_step_end: StepCallback | None = None,
        sampler: str | None = None,
        timings: Timings | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Array]:
        """Frames of a video in order, uint8 [H, W, 3]; a frame is valid until the next.

        On a GPU the steps and the decoder are one launch; a callback needs the host between two
        steps and divides it. Arguments and errors as of a call.
        """
        timings = Timings() if timings is None else timings
        if not self.components.fused or callback_on_step_end is not None:
            clean = self.denoise(
                prompt_embeds,
                generator=generator,
                seed=seed,
                latents=latents,
                callback_on_step_end=callback_on_step_end,
                sampler=sampler,
                timings=timings,
                progress=progress,
            )
            yield from self.decode(clean, timings=timings, progress=progress)
            return
        progress = progress or Quiet()
        schedule = self.schedule(sampler)
        noises = draw_noises(self.components.latents_shape, schedule, generator, seed, latents)
        with timings.measure("text_kv"):
            self.components.prepare(prompt_embeds, schedule)
        progress.start("video", self.components.video_shape[0], "frames")
        for frame in self.components.video(noises, schedule, timings):
            progress.advance()
            yield frame
        progress.finish()

    def decode(
        self, latents: Array, *, timings: Timings | None = None, progress: Progress | None = None
    ) -> Iterator[Array]:
        """Frames of clean latents in order, uint8 [H, W, 3]; a frame is valid until the next."""
        timings = Timings() if timings is None else timings
        progress = progress or Quiet()
        frames = self.components.decode(latents)
        progress.start("decode", self.components.video_shape[0], "frames")
        while True:
            with timings.measure("decode"):
                frame = next(frames, None)
            if frame is None:
                break
            progress.advance()
            yield frame
        progress.finish()
