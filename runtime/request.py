"""One video to make: everything that a call asks for, checked once and passed down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastwan.errors import BadInput
from fastwan.runtime.model.executor import Array
from fastwan.runtime.model.noise import DEFAULT_SEED
from fastwan.runtime.outputs import OUTPUT_TYPES, OutputType

if TYPE_CHECKING:
    import torch

StepCallback = Callable[[int, int, "torch.Tensor"], "dict[str, Any] | None"]
"""(step, timestep, latents after it, fp32) -> {"latents": ...} to go on with, or None."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """What a caller wants; nothing of it is kept by the pipeline.

    Attributes:
        prompt: the text; or else `prompt_embeds`.
        prompt_embeds: [1, up to text_length, text_dim]; padded with zero rows.
        height: pixels; None, or what the bundle was built for.
        width: likewise.
        num_frames: likewise.
        seed: of the noise.
        generator: CPU generator of the noise; or else `seed` makes one.
        latents: initial noise [1, C, T, h, w] instead of drawn noise.
        sampler: one of the bundle's; None for its default.
        output_type: "np", "pil", "pt" or "latent"; see `PipelineOutput`.
        on_step: called after each step; what it returns may replace the latents.

    Raises:
        BadInput: neither or both of prompt and embeddings, or an unknown output type.
    """

    prompt: str | None = None
    prompt_embeds: torch.Tensor | Array | None = None
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    seed: int = DEFAULT_SEED
    generator: torch.Generator | None = None
    latents: torch.Tensor | Array | None = None
    sampler: str | None = None
    output_type: OutputType = "np"
    on_step: StepCallback | None = None

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.prompt_embeds is None):
            raise BadInput("give either prompt or prompt_embeds", where="prompt")
        if self.prompt is not None and not isinstance(self.prompt, str):
            raise BadInput("prompt must be one string", where="prompt", fix="call once a prompt")
        if self.output_type not in OUTPUT_TYPES:
            raise BadInput(
                f"unknown output_type {self.output_type!r}",
                fix="one of " + ", ".join(OUTPUT_TYPES),
            )

    @property
    def decoded(self) -> bool:
        """Whether frames are wanted, and not latents."""
        return self.output_type != "latent"
