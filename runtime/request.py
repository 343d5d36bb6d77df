"""One video to make: everything that a call asks for, checked once and passed down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastwan.errors import BadInput, shown
from fastwan.runtime.model.executor import Array
from fastwan.runtime.model.given import given_torch
from fastwan.runtime.model.noise import DEFAULT_SEED, check_generator, seed_of
from fastwan.runtime.model.prompt import check_prompt
from fastwan.runtime.outputs import OUTPUT_TYPES, OutputType

if TYPE_CHECKING:
    import torch

FramesCallback = Callable[[Array], None]
"""(frames) of a video as they are decoded, uint8 [n, H, W, 3], in order; the callee's own."""

StepCallback = Callable[[int, int, "torch.Tensor | Array"], "dict[str, Any] | None"]
"""(step, timestep, latents after it, fp32) -> {"latents": ...} to go on with, or None.

Latents are a tensor where the process has imported torch, else an array of numpy's."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """What a caller wants; nothing of it is kept by the pipeline.

    Attributes:
        prompt: the text; or else `prompt_embeds`.
        prompt_embeds: [1, up to text_length, text_dim]; padded with zero rows.
        negative_prompt: what a guided sampler leads away from; None is the empty text.
        negative_prompt_embeds: in its place, like `prompt_embeds`.
        guidance_scale: None, or that of the sampler; 1 at most is no guidance.
        height: pixels; None, or what the bundle was built for.
        width: likewise.
        num_frames: likewise.
        max_sequence_length: tokens that are read of the prompt; likewise.
        seed: of the noise, 0 to 2**64 - 1; None becomes a fresh one. Not read beside a generator.
        generator: CPU generator of the noise; or else `seed` makes one.
        latents: initial noise [1, C, T, h, w] instead of drawn noise.
        sampler: one of the bundle's; None for its default.
        output_type: one of `OUTPUT_TYPES`; see `PipelineOutput`.
        on_step: called after each step; what it returns may replace the latents.
        on_frames: called with frames as they are decoded, before the last of them are made.

    Raises:
        BadInput: neither or both of prompt and embeddings, a prompt that is no text, a seed or a
            generator that cannot be used, a sampler that is no name, an unknown output type, one
            of torch's where that is not imported, or frames that are wanted of latents.
    """

    prompt: str | None = None
    prompt_embeds: torch.Tensor | Array | None = None
    negative_prompt: str | None = None
    negative_prompt_embeds: torch.Tensor | Array | None = None
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    max_sequence_length: int | None = None
    seed: int | None = DEFAULT_SEED
    generator: torch.Generator | None = None
    latents: torch.Tensor | Array | None = None
    sampler: str | None = None
    output_type: OutputType = "np"
    on_step: StepCallback | None = None
    on_frames: FramesCallback | None = None

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.prompt_embeds is None):
            raise BadInput("give either prompt or prompt_embeds", where="prompt")
        if self.prompt is not None:
            check_prompt(self.prompt)
        if self.negative_prompt is not None and self.negative_prompt_embeds is not None:
            raise BadInput(
                "give either negative_prompt or negative_prompt_embeds", where="negative_prompt"
            )
        if self.negative_prompt not in (None, ""):
            check_prompt(self.negative_prompt, "negative_prompt")
        if self.generator is None:
            object.__setattr__(self, "seed", seed_of(self.seed))
        else:
            check_generator(self.generator)
        if self.sampler is not None and not isinstance(self.sampler, str):
            raise BadInput(f"sampler is {shown(self.sampler)}, not a name", where="sampler")
        if not isinstance(self.output_type, str) or self.output_type not in OUTPUT_TYPES:
            raise BadInput(
                f"unknown output_type {shown(self.output_type)}",
                where="output_type",
                fix="one of " + ", ".join(OUTPUT_TYPES),
            )
        if self.output_type == "pt" and given_torch() is None:
            raise BadInput(
                "output_type pt makes tensors, and this process has not imported torch",
                where="output_type",
                fix="import torch first, or take np",
            )
        if self.on_frames is not None and not callable(self.on_frames):
            raise BadInput(f"{shown(self.on_frames)} cannot be called", where="on_frames")
        if self.on_frames is not None and not self.decoded:
            raise BadInput(
                "latents are not decoded, so that there are no frames to hand out",
                where="on_frames",
                fix="leave it out, or ask for another output_type",
            )

    @property
    def decoded(self) -> bool:
        """Whether frames are wanted, and not latents."""
        return self.output_type != "latent"
