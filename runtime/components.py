"""The parts of a bundle that make a video, opened on the CPU or on a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Protocol

from fastwan.bundle import Bundle
from fastwan.config import VideoShape
from fastwan.errors import BadInput
from fastwan.runtime.cpu.executor import cpu_executor
from fastwan.runtime.device.runtime_cache import State
from fastwan.runtime.model.decode import Decoder
from fastwan.runtime.model.dit import DIT_GRAPHS, DiT
from fastwan.runtime.model.executor import Array
from fastwan.runtime.model.loop import combine, denoise
from fastwan.runtime.model.sampler import Schedule
from fastwan.runtime.model.text import TextEncoder
from fastwan.runtime.outputs import Timings

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


class CpuComponents:
    """Components of a bundle over ONNX Runtime, each loaded when it is first used.

    Args:
        bundle: an opened engine bundle.
        threads: see `fastwan.runtime.cpu.executor.OnnxRuntimeExecutor`.
    """

    fused = False

    def __init__(self, bundle: Bundle, *, threads: int = 1) -> None:
        self._bundle = bundle
        self._threads = threads
        self._context: Mapping[str, Array] = {}

    @property
    def runtime_cache(self) -> State:
        return "unused"

    @cached_property
    def shape(self) -> VideoShape:
        return bundle_shape(self._bundle)

    @cached_property
    def text_encoder(self) -> TextEncoder:
        require_text_encoder(self._bundle)
        executor = cpu_executor(self._bundle, "text_encoder", threads=self._threads)
        return TextEncoder.from_bundle(self._bundle, executor, self.dit.text_shape[1])

    @cached_property
    def dit(self) -> DiT[Array]:
        dit = DiT(*(cpu_executor(self._bundle, name, threads=self._threads) for name in DIT_GRAPHS))
        channels = dit.latents_shape[1]
        if dit.latents_shape != self.shape.latents(channels):
            raise BadInput(
                f"dit makes latents {list(dit.latents_shape)}, "
                f"the manifest says {list(self.shape.latents(channels))}",
                where=str(self._bundle.root),
                fix="build the bundle again",
            )
        return dit

    @cached_property
    def decoder(self) -> Decoder[Array]:
        return Decoder(cpu_executor(self._bundle, "decoder", threads=self._threads))

    @property
    def latents_shape(self) -> tuple[int, ...]:
        return self.dit.latents_shape

    @property
    def text_shape(self) -> tuple[int, ...]:
        return self.dit.text_shape

    @property
    def video_shape(self) -> tuple[int, ...]:
        return (self.decoder.num_frames(self.latents_shape[2]), *self.decoder.frame_shape)

    def load(self, schedule: Schedule, *, text: bool, decoder: bool) -> None:
        for name in ["dit", *["text_encoder"] * text, *["decoder"] * decoder]:
            getattr(self, name)
        for step in schedule.steps:
            self.dit.tables(step.timestep)

    def prepare(self, prompt_embeds: Array, schedule: Schedule) -> None:
        self._context = self.dit.prepare(prompt_embeds)

    def denoise(self, noises: Sequence[Array], schedule: Schedule, on_step: OnStep | None) -> Array:
        return denoise(
            lambda state, timestep: self.dit.velocity(state, timestep, self._context),
            noises[0],
            schedule,
            noises[1:],
            combine=combine,
            on_step=on_step,
        )

    def decode(self, latents: Array) -> Iterator[Array]:
        return self.decoder.frames(latents)

    def video(
        self, noises: Sequence[Array], schedule: Schedule, timings: Timings
    ) -> Iterator[Array]:
        with timings.measure("denoise"):
            latents = self.denoise(noises, schedule, None)
        return self.decode(latents)
