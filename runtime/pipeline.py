"""`FastWanPipeline`: a bundle, called like diffusers' WanPipeline."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from fastwan.bundle import Bundle, open_bundle
from fastwan.errors import BadInput
from fastwan.progress import Progress, Quiet
from fastwan.runtime.arguments import chosen_shape
from fastwan.runtime.batch import check_built_in, refuse_unknown, requests_of
from fastwan.runtime.call import Call
from fastwan.runtime.callback import step_callback
from fastwan.runtime.components import Components, bundle_text
from fastwan.runtime.device.choice import DeviceChoice
from fastwan.runtime.guidance import guided_schedule
from fastwan.runtime.like_diffusers import LikeDiffusers
from fastwan.runtime.model.executor import Array
from fastwan.runtime.model.noise import DEFAULT_SEED
from fastwan.runtime.model.schedule import Schedule
from fastwan.runtime.opened_shapes import OpenedShapes
from fastwan.runtime.outputs import OutputType, PipelineOutput
from fastwan.runtime.pretrained import bundle_folder, device_of, open_components
from fastwan.runtime.prompt_cache import PromptCache
from fastwan.runtime.request import FramesCallback, Request
from fastwan.runtime.run import Run, decode_latents, make_videos
from fastwan.runtime.timings import Timings

if TYPE_CHECKING:
    import torch

StepCallback = Callable[["FastWanPipeline", int, int, dict[str, Any]], "dict[str, Any] | None"]


class FastWanPipeline(LikeDiffusers):
    """Text to video from an engine bundle; make one with `from_pretrained`."""

    def __init__(
        self,
        bundle: Bundle,
        choice: DeviceChoice,
        components: Components,
        prompts: PromptCache | None = None,
        threads: int = 1,
    ) -> None:
        super().__init__(bundle, choice)
        self.components = components
        self._shapes = OpenedShapes(bundle, components, choice.name, threads)
        self.prompts = prompts or PromptCache.of(bundle)
        self._closed = False

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Path | str,
        *,
        device: str = "auto",
        threads: int = 1,
        prompt_cache: Path | str | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        **options: Any,
    ) -> Self:
        """Open a bundle as diffusers opens a model.

        Args:
            pretrained_model_name_or_path: folder of a bundle, or its Hugging Face id.
            device, threads, prompt_cache, height, width, num_frames: see `from_bundle`.
            options: ``torch_dtype`` or ``dtype`` (bfloat16), ``device_map`` (in the place of
                `device`), ``revision``, ``local_files_only``; others are refused.

        Raises:
            BadInput: no bundle, or an option that a bundle cannot serve.
            EnvironmentLacks: the device cannot be used, or the hub cannot be reached.
        """
        wanted = device_of(device, options)
        folder = bundle_folder(pretrained_model_name_or_path, options)
        return cls.from_bundle(
            folder,
            wanted,
            threads=threads,
            prompt_cache=prompt_cache,
            height=height,
            width=width,
            num_frames=num_frames,
        )

    @classmethod
    def from_bundle(
        cls,
        path: Path | str,
        device: str = "auto",
        *,
        threads: int = 1,
        prompt_cache: Path | str | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
    ) -> Self:
        """Open a bundle on "auto", "cpu", "cuda" or "emulated".

        Args:
            path: folder that ``build-engine`` wrote.
            device: "auto" takes the GPU where one is visible, and the CPU without one;
                "emulated" computes a Blackwell GPU's numbers on a Hopper GPU.
            threads: CPU threads inside an operator; another number may change the last bits.
            prompt_cache: folder that keeps the embeddings of prompts.
            height, width, num_frames: of a bundle with several shapes, which one is opened, and
                made by calls that name none; its first where None.

        Raises:
            BadInput: no bundle, a device of another name, or a shape that the bundle lacks.
            EnvironmentLacks: the device cannot be used.
        """
        bundle = open_bundle(path)
        shapes = bundle.manifest.video_shapes
        shape = chosen_shape(shapes, height=height, width=width, num_frames=num_frames)
        bundle = bundle.at(shape)
        choice, components = open_components(bundle, device, threads)
        prompts = PromptCache.of(bundle, prompt_cache, runs_on=components.runs_on)
        return cls(bundle, choice, components, prompts, threads)

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_scale_2: float | None = None,
        num_videos_per_prompt: int | None = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: torch.Tensor | Array | None = None,
        prompt_embeds: torch.Tensor | Array | None = None,
        negative_prompt_embeds: torch.Tensor | Array | None = None,
        output_type: OutputType = "np",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = ("latents",),
        max_sequence_length: int | None = None,
        *,
        seed: int | None = DEFAULT_SEED,
        sampler: str | None = None,
        progress: Progress | None = None,
        on_frames: FramesCallback | None = None,
        **kwargs: Any,
    ) -> PipelineOutput | tuple[Any, ...]:
        """Make videos, one after the other. The arguments are those of diffusers' WanPipeline.

        A callback that sets ``pipeline._interrupt = True`` ends its call after that step: frames
        are made of the latents so far, and no further video is begun. Another thread that sets it
        ends every call that is being served. On a GPU a video without a callback is one launch,
        which nothing ends early.

        Args:
            prompt: the text, or a list of texts; or else give `prompt_embeds`.
            negative_prompt: what a guided sampler leads away from, one for all prompts or one
                each; None is the empty text, the only one of a sampler without guidance.
            height, width, num_frames: one of the bundle's shapes; None for that of `from_bundle`.
                Another one is opened when it is first asked for. On a GPU that closes the one
                before: one shape has the memory at a time.
            num_inference_steps: None, or the sampler's.
            guidance_scale: None for the sampler's; 1 at most is no guidance, and all that a
                distilled model takes. `guidance_scale_2` None.
            num_videos_per_prompt: videos of each prompt.
            generator: CPU generator of the noise, which draws for one video after the other, or a
                list with one for each video; or else `seed` makes one a video.
            latents: initial noise [videos, C, T, h, w] instead of drawn noise.
            prompt_embeds: [prompts, up to text_length, text_dim]; padded with zero rows. Of the
                same form `negative_prompt_embeds`, in the place of `negative_prompt`.
            output_type: "np", "pt", "pil", "uint8" or "latent"; see `PipelineOutput`.
            return_dict: False returns ``(frames,)``.
            attention_kwargs: None or empty.
            callback_on_step_end: called after each step as (pipeline, step, timestep,
                {"latents": fp32 tensor}); the dictionary it returns may replace the latents.
            callback_on_step_end_tensor_inputs: what the dictionary holds, of "latents",
                "prompt_embeds" and "negative_prompt_embeds" (not to be changed; the latter None
                without guidance).
            max_sequence_length: None, or the text length of the bundle.
            seed: of each prompt's first video, the next has `seed` + 1; None draws a fresh one.
            sampler: one of the bundle's; by default the first.
            progress: told of stages and steps; by default a bar, see `set_progress_bar_config`.
            on_frames: called with the frames of each video as they are decoded, uint8
                [n, H, W, 3], in order.

        Raises:
            BadInput: an argument that the bundle cannot serve, or that does not exist.
            VerificationFailed: a file of the bundle differs from its hash, or a step makes NaN.
        """
        refuse_unknown(list(kwargs), [*inspect.signature(self.__call__).parameters][:-1])
        schedule = self.schedule(sampler, guidance_scale)
        check_built_in(schedule, num_inference_steps, attention_kwargs, guidance_scale_2)
        names = callback_on_step_end_tensor_inputs
        requests = requests_of(
            prompt=prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt=negative_prompt,
            negative_prompt_embeds=negative_prompt_embeds,
            guidance_scale=guidance_scale,
            num_videos_per_prompt=num_videos_per_prompt,
            generator=generator,
            seed=seed,
            latents=latents,
            height=height,
            width=width,
            num_frames=num_frames,
            max_sequence_length=max_sequence_length,
            sampler=sampler,
            output_type=output_type,
            on_step=step_callback(self, self._calls, callback_on_step_end, names),
            on_frames=on_frames,
        )
        bar = self._step_bar()
        try:
            with self._turn() as call:
                output = make_videos(self._runs(requests, call, progress or bar), self.choice)
        finally:
            bar.stop()
        return output if return_dict else output.to_tuple()

    def make(self, request: Request, *, progress: Progress | None = None) -> PipelineOutput:
        """Make the video of a request; errors as of a call.

        Calls of several threads are served one after the other on a GPU and side by side on the
        CPU, each as if it were alone.
        """
        with self._turn() as call:
            return make_videos(self._runs([request], call, progress or Quiet()), self.choice)

    def frames(
        self,
        request: Request,
        *,
        timings: Timings | None = None,
        progress: Progress | None = None,
    ) -> Generator[Array]:
        """Frames of a video in order, uint8 [H, W, 3]; a frame is valid until the next.

        On a GPU the steps and the decoder are one launch; a callback needs the host between two
        steps and divides it. Nothing begins before the first frame is asked for. Errors as of a
        call.

        Args:
            request: what to make.
            timings: gets the measured seconds of the stages.
            progress: told of stages and steps.
        """
        with self._turn() as call:
            (run,) = self._runs([request], call, progress or Quiet())
            if timings is not None:
                run.timings = timings
            run.open()
            made = run.frames()
            if run.components.fused:
                # The next turn writes over the device's own.
                made = iter([frame.copy() for frame in made])
        yield from made

    def stream(
        self,
        request: Request,
        *,
        timings: Timings | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Make a video for the request's `on_frames` alone; arguments and errors as of `frames`."""
        with self._turn() as call:
            (run,) = self._runs([request], call, progress or Quiet())
            if timings is not None:
                run.timings = timings
            run.open()
            for _ in run.frames():
                pass

    def _runs(self, requests: Sequence[Request], call: Call, progress: Progress) -> list[Run]:
        return [
            Run(
                each,
                self.schedule(each.sampler, each.guidance_scale),
                self._shapes.of(each),
                self.prompts,
                call,
                progress,
            )
            for each in requests
        ]

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
        with self._turn() as call:
            request = Request(prompt=prompt, output_type="latent", guidance_scale=1)
            (run,) = self._runs([request], call, progress or Quiet())
            return run.open()

    def decode(
        self,
        latents: torch.Tensor | Array,
        *,
        progress: Progress | None = None,
        on_frames: FramesCallback | None = None,
    ) -> Iterator[Array]:
        """Frames of clean latents in order, uint8 [H, W, 3]; a frame is valid until the next.

        Args:
            latents: [1, C, T, h, w] of the shape of `from_bundle`, normalised as ``latent`` output
                is.
            progress: told of the frames.
            on_frames: called with the frames of each latent as they are decoded, before the last
                of them are made.

        Raises:
            BadInput: latents of another shape, or no decoder in the bundle.
            VerificationFailed: a file of the bundle differs from its hash.
        """
        with self._turn():
            frames = decode_latents(
                self.components, self.schedule(), latents, progress or Quiet(), on_frames
            )
        yield from frames

    def schedule(self, sampler: str | None = None, guidance_scale: object = None) -> Schedule:
        """Schedule of one of the bundle's samplers, by default the first.

        Args:
            guidance_scale: see `fastwan.runtime.guidance.guided_schedule`.

        Raises:
            BadInput: the bundle has no such sampler, or it cannot play with that scale.
        """
        return guided_schedule(self.bundle.manifest.sampler_spec(sampler), guidance_scale)

    def unload(self) -> None:
        """Give back memory, engines and sessions; the next call opens them anew."""
        with self.components.turn():
            self._shapes.close()

    def close(self) -> None:
        """Unload for good. A closed pipeline makes no more videos."""
        if not self._closed:
            with self.components.turn():
                self._closed = True
                self._shapes.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        note = f" ({self.choice.note})" if self.choice.note else ""
        runs = "nothing any more, it is closed" if self._closed else self.choice.name + note
        lines = f"{bundle_text(self.bundle)}\nruns on: {runs}".replace("\n", "\n  ")
        return f"{type(self).__name__}\n  {lines}"

    @contextmanager
    def _turn(self) -> Iterator[Call]:
        """A call that has the components to itself."""
        with self._calls.begin() as call, self.components.turn():
            if self._closed:
                raise BadInput(
                    "the pipeline is closed", where=str(self.bundle.root), fix="open the bundle"
                )
            yield call
