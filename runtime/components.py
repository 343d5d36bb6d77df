"""What the pipeline asks of the parts of a bundle, opened on the CPU or on a device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol

from fastwan.bundle import Bundle
from fastwan.config import VideoShape
from fastwan.errors import BadInput
from fastwan.runtime.model.executor import Array
from fastwan.runtime.model.loop import OnStep
from fastwan.runtime.model.noise import Normals
from fastwan.runtime.model.samplers import schedule_of
from fastwan.runtime.model.schedule import Schedule
from fastwan.runtime.model.text import TextEncoder
from fastwan.runtime.timings import Timings
from fastwan.shapes import shape_text

State = Literal["hit", "miss", "unused"]


class Components(Protocol):
    """What the pipeline asks of a bundle on a device.

    Attributes:
        fused: `video` runs the steps and the decoder as one, faster than one after the other.
    """

    fused: bool

    @property
    def runs_on(self) -> str:
        """Device and library: what the last bits of a result depend on."""

    @property
    def runtime_cache(self) -> State:
        """Whether kernels compiled by an earlier process were used; see `RuntimeCache`."""

    @property
    def eager_reason(self) -> str:
        """Why a device's work is enqueued call by call; empty where it is graphs, or no device."""

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

    def normals(self, seed: int) -> Normals:
        """What draws the noise of a seed, see `fastwan.runtime.model.normal`."""

    def load(self, schedule: Schedule, *, text: bool, decoder: bool) -> None:
        """Open what a video needs and compute the schedule's tables, where that is not done."""

    def turn(self) -> AbstractContextManager[None]:
        """Held while a call uses the device; the calls of other threads wait.

        Raises:
            BadInput: this thread holds it already, so that waiting would never end.
        """

    def denoise(
        self,
        embeds: Sequence[Array],
        noises: Sequence[Array],
        schedule: Schedule,
        timings: Timings,
        on_step: OnStep[Array] | None,
    ) -> Array:
        """Clean latents [1, C, T, h, w], fp32; adds the time of ``text_kv`` to `timings`.

        Args:
            embeds: `text_shape` each, as many as ``schedule.prompts``.
        """

    def decode(self, latents: Array, schedule: Schedule) -> Iterator[Array]:
        """Frames in order as they are decoded, uint8 [n, H, W, 3]; a chunk is valid until the
        next."""

    def video(
        self,
        embeds: Sequence[Array],
        noises: Sequence[Array],
        schedule: Schedule,
        timings: Timings,
    ) -> Iterator[Array]:
        """The same straight from noise; the stages' times are in `timings` after the last chunk."""

    def close(self) -> None:
        """Give back what was opened; the next call opens it anew."""


def bundle_shape(bundle: Bundle) -> VideoShape:
    """Height, width and frames that a bundle was built for."""
    return bundle.manifest.onnx.model.shape


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


def bundle_text(bundle: Bundle) -> str:
    """A bundle in a few lines: where it lies, its model, video and samplers."""
    manifest, shape = bundle.manifest, bundle_shape(bundle)
    model = manifest.onnx.model
    samplers = ", ".join(
        f"{spec.name} ({len(schedule_of(spec).steps)} steps)" for spec in manifest.samplers
    )
    further = ", ".join(shape_text(each.shape) for each in manifest.shapes)
    others = f"; also {further}" if further else ""
    return (
        f"bundle: {str(bundle.root)!r}\n"
        f"model: {model.name}, {model.recipe}, {manifest.attention} attention, "
        f"built for {manifest.target}\n"
        f"video: {shape.num_frames} frames of {shape.width}x{shape.height}{others}\n"
        f"samplers: {samplers}; by default {manifest.sampler_spec().name}"
    )
