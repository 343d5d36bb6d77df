"""The parts of a bundle on a device: sessions, one for each sampler that was asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property

import numpy as np

from fastwan.bundle import Bundle
from fastwan.config import VideoShape
from fastwan.errors import BadInput
from fastwan.manifest import TensorSpec
from fastwan.runtime.components import State, bundle_shape, require_text_encoder
from fastwan.runtime.device.session import Platform, Session, no_decoder
from fastwan.runtime.model.executor import Array
from fastwan.runtime.model.loop import OnStep
from fastwan.runtime.model.noise import Normals
from fastwan.runtime.model.samplers import schedule_of
from fastwan.runtime.model.schedule import Schedule
from fastwan.runtime.model.text import TextEncoder
from fastwan.runtime.recording.machine import DeviceEngine
from fastwan.runtime.recording.text import EMBEDDINGS, HIDDEN_STATES
from fastwan.runtime.text import open_text_encoder
from fastwan.runtime.timings import Timings


class DeviceComponents:
    """Components over engines. Frames are views of pinned memory, valid while a turn is held.

    Args:
        platform: device, kernels and how engines are opened.
    """

    fused = True

    def __init__(self, bundle: Bundle, platform: Platform) -> None:
        self._bundle = bundle
        self._platform = platform
        self._engines: Mapping[str, DeviceEngine] | None = None
        self._fallbacks: Mapping[str, DeviceEngine] | None = None
        self._sessions: dict[str, Session] = {}
        self._current: Session | None = None
        self._prepared: dict[str, list[Array]] = {}
        self._lock = threading.Lock()
        self._holder = 0

    @contextmanager
    def turn(self) -> Iterator[None]:
        if self._holder == threading.get_ident():
            raise BadInput(
                "a step's callback calls the pipeline that it is called by",
                fix="make the other video before or after this one",
            )
        with self._lock:
            self._holder = threading.get_ident()
            try:
                yield
            finally:
                self._holder = 0

    def session(self, schedule: Schedule | None = None) -> Session:
        """Session of a sampler; by default the last one that was used, or the bundle's own.

        Text and decoder are the same in all of them, and each session has memory of its own.
        A sampler with another scale of guidance takes the place of the one before.
        """
        if schedule is None and self._current is not None:
            return self._current
        schedule = schedule or schedule_of(self._bundle.manifest.sampler_spec())
        known = self._sessions.get(schedule.name)
        if known is not None and known.recording.schedule != schedule:
            known.close()
            del self._sessions[schedule.name]
            self._prepared.pop(schedule.name, None)
        if schedule.name not in self._sessions:
            shared = replace(
                self._platform,
                open_engines=self._open_engines,
                open_fallbacks=self._open_fallbacks,
            )
            self._sessions[schedule.name] = Session(shared, self._bundle, schedule)
        self._current = self._sessions[schedule.name]
        return self._current

    @property
    def runs_on(self) -> str:
        info = self._platform.device.info
        return f"{info.name} driver {info.driver}"

    @property
    def runtime_cache(self) -> State:
        cache = self._platform.runtime_cache
        return "unused" if cache is None else cache.state

    @property
    def eager_reason(self) -> str:
        reasons = (session.eager_reason for session in list(self._sessions.values()))
        return next(filter(None, reasons), "")

    def _open_engines(self, bundle: Bundle) -> Mapping[str, DeviceEngine]:
        if self._engines is None:
            self._engines = self._platform.open_engines(bundle)
        return self._engines

    def _open_fallbacks(self, bundle: Bundle) -> Mapping[str, DeviceEngine]:
        if self._fallbacks is None:
            self._fallbacks = self._platform.open_fallbacks(bundle)
        return self._fallbacks

    @cached_property
    def shape(self) -> VideoShape:
        return bundle_shape(self._bundle)

    @cached_property
    def text_encoder(self) -> TextEncoder:
        require_text_encoder(self._bundle)
        executor = _TextExecutor(self.session)
        return open_text_encoder(self._bundle, executor, self.text_shape[1])

    @property
    def latents_shape(self) -> tuple[int, ...]:
        return self.session().recording.latents.shape

    @property
    def text_shape(self) -> tuple[int, ...]:
        return self.session().recording.prompt_embeds.shape

    @property
    def video_shape(self) -> tuple[int, ...]:
        frames = self.session().recording.frames
        if frames is None:
            raise no_decoder(self._bundle.root)
        return frames.shape

    def normals(self, seed: int) -> Normals:
        return self._platform.normals(seed)

    def load(self, schedule: Schedule, *, text: bool, decoder: bool) -> None:
        self.session(schedule).load()
        if text:
            _ = self.text_encoder

    def _prepare(self, embeds: Sequence[Array], schedule: Schedule) -> None:
        # Keys and values stay on the device: the same prompts again cost nothing.
        known = self._prepared.get(schedule.name, [])
        if len(known) == len(embeds) and all(map(np.array_equal, known, embeds)):
            return
        self._prepared.pop(schedule.name, None)
        self.session(schedule).prepare(*embeds)
        self._prepared[schedule.name] = [each.copy() for each in embeds]

    def forget(self) -> None:
        """Compute keys and values anew for the next video."""
        self._prepared.clear()

    def denoise(
        self,
        embeds: Sequence[Array],
        noises: Sequence[Array],
        schedule: Schedule,
        timings: Timings,
        on_step: OnStep[Array] | None,
    ) -> Array:
        with timings.measure("text_kv"):
            self._prepare(embeds, schedule)
        return self.session(schedule).denoise(noises, on_step)

    def decode(self, latents: Array, schedule: Schedule) -> Iterator[Array]:
        return self.session(schedule).decode_chunks(latents)

    def video(
        self,
        embeds: Sequence[Array],
        noises: Sequence[Array],
        schedule: Schedule,
        timings: Timings,
    ) -> Iterator[Array]:
        session = self.session(schedule)
        with timings.measure("text_kv"):
            self._prepare(embeds, schedule)
        yield from timings.measured("video", session.video_chunks(noises))
        for name, milliseconds in session.milliseconds().items():
            timings[name] = milliseconds / 1e3

    def close(self) -> None:
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()
        self._prepared.clear()
        self._current = self._engines = self._fallbacks = None
        self.__dict__.pop("text_encoder", None)


class _TextExecutor:
    """The text encoder's engines over arrays, as one graph."""

    def __init__(self, session: Callable[[], Session]) -> None:
        self._session = session
        text = session().recording.text
        if text is None:
            raise BadInput("bundle has no text encoder engine", where="manifest.json")
        self.inputs: Mapping[str, TensorSpec] = {EMBEDDINGS: text.specs[EMBEDDINGS]}
        self.outputs: Mapping[str, TensorSpec] = {HIDDEN_STATES: text.specs[HIDDEN_STATES]}

    def full(self, name: str, value: float = 0.0) -> Array:
        raise BadInput(f"{name} has no fixed shape", where="text_encoder")

    def run(
        self, inputs: Mapping[str, Array], outputs: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        return {HIDDEN_STATES: self._session().encode(inputs[EMBEDDINGS])}
