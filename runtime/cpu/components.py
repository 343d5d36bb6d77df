"""The parts of a bundle that make a video, over ONNX Runtime."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial

from fastwan.bundle import Bundle
from fastwan.config import VideoShape
from fastwan.errors import BadInput
from fastwan.runtime.components import State, bundle_shape, require_text_encoder
from fastwan.runtime.cpu.executor import cpu_executor
from fastwan.runtime.model.decode import Decoder
from fastwan.runtime.model.dit import DIT_GRAPHS, DiT
from fastwan.runtime.model.executor import Array
from fastwan.runtime.model.loop import OnStep, combine, denoise, guided
from fastwan.runtime.model.noise import Normals
from fastwan.runtime.model.normal import NormalGenerator
from fastwan.runtime.model.schedule import Schedule
from fastwan.runtime.model.text import TextEncoder
from fastwan.runtime.text import open_text_encoder
from fastwan.runtime.timings import Timings


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

    @property
    def runs_on(self) -> str:
        import onnxruntime as ort

        machine = platform.machine()
        return f"cpu {machine} onnxruntime {ort.__version__} threads {self._threads}"

    @property
    def runtime_cache(self) -> State:
        return "unused"

    @property
    def eager_reason(self) -> str:
        return ""

    def normals(self, seed: int) -> Normals:
        return NormalGenerator(seed)

    @cached_property
    def shape(self) -> VideoShape:
        return bundle_shape(self._bundle)

    @cached_property
    def text_encoder(self) -> TextEncoder:
        require_text_encoder(self._bundle)
        executor = cpu_executor(self._bundle, "text_encoder", threads=self._threads)
        return open_text_encoder(self._bundle, executor, self.dit.text_shape[1])

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

    def turn(self) -> AbstractContextManager[None]:
        # Nothing of a call is kept here, so that calls run side by side.
        return nullcontext()

    def denoise(
        self,
        embeds: Sequence[Array],
        noises: Sequence[Array],
        schedule: Schedule,
        timings: Timings,
        on_step: OnStep[Array] | None,
    ) -> Array:
        with timings.measure("text_kv"):
            contexts = [self.dit.prepare(each) for each in embeds]
        velocities = [partial(self.dit.velocity, context=each) for each in contexts]
        return denoise(
            guided(velocities, schedule.guidance, combine=combine),
            noises[0],
            schedule,
            noises[1:],
            combine=combine,
            on_step=on_step,
        )

    def decode(self, latents: Array, schedule: Schedule) -> Iterator[Array]:
        return self.decoder.chunks(latents)

    def video(
        self,
        embeds: Sequence[Array],
        noises: Sequence[Array],
        schedule: Schedule,
        timings: Timings,
    ) -> Iterator[Array]:
        return self.decode(self.denoise(embeds, noises, schedule, timings, None), schedule)

    def close(self) -> None:
        for name in ("text_encoder", "dit", "decoder"):
            self.__dict__.pop(name, None)
