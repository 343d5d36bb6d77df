"""What the pipeline asks of the parts of a bundle, opened on the CPU or on a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol

from fastwan.bundle import Bundle
from fastwan.config import VideoShape
from fastwan.errors import BadInput
from fastwan.runtime.model.executor import Array
from fastwan.runtime.model.sampler import Schedule
from fastwan.runtime.model.text import TextEncoder
from fastwan.runtime.timings import Timings

State = Literal["hit", "miss", "unused"]
OnStep = Callable[[int, int, Array], "Array | None"]
"""(step, timestep, latents after it) -> latents to go on with, None to keep them."""


class Components(Protocol):
    """What the pipeline asks of a bundle on a device.

    Attributes:
        fused: `video` runs the steps and the decoder as one, faster than one after the other.
    """

    fused: bool

    @property
    def runtime_cache(self) -> State:
        """Whether kernels compiled by an earlier process were used; see `RuntimeCache`."""

    @property
    def shape(self) -> VideoShape:
        """Height, width and frames that the bundle was built for."""

    @property
    def text_encoder(self) -> TextEncoder: ...
    @property
    def latents_shape(self) -> tuple[int, ...]: ...
    @property
    def text_shape(self) -> tuple[int, ...]: ...
    @property
    def video_shape(self) -> tuple[int, ...]:
        """[F, H, W, 3]."""

    def load(self, schedule: Schedule, *, text: bool, decoder: bool) -> None:
        """Open what a video needs and compute the schedule's tables, where that is not done."""

    def prepare(self, prompt_embeds: Array, schedule: Schedule) -> None:
        """Compute the keys and values of a prompt for the calls that follow."""

    def denoise(self, noises: Sequence[Array], schedule: Schedule, on_step: OnStep | None) -> Array:
        """Clean latents [1, C, T, h, w], fp32."""

    def decode(self, latents: Array) -> Iterator[Array]:
        """Frames [H, W, 3] uint8; one is valid until the next."""

    def video(
        self, noises: Sequence[Array], schedule: Schedule, timings: Timings
    ) -> Iterator[Array]:
        """Frames straight from noise; adds the stages' times to `timings`."""


def bundle_shape(bundle: Bundle) -> VideoShape:
    """Height, width and frames that a bundle was built for."""
    return VideoShape(**bundle.manifest.onnx.model.shape.model_dump())


def require_text_encoder(bundle: Bundle) -> None:
    """Raise unless the bundle has a text encoder.

    Raises:
        BadInput: it has none.
    """
    if "text_encoder" not in bundle.manifest.onnx.graphs:
        raise BadInput(
            "bundle has no text encoder",
            where=str(bundle.root),
            fix="pass prompt_embeds, or build with --components dit,decoder,text_encoder",
        )
