"""A bundle played for a comparison: velocities, latents and frames, on ONNX Runtime or a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fastwan.quality.compare.as_built import ships_its_reference
from fastwan.quality.emulated.full_size import Setting, run_watched_step, step_velocity
from fastwan.quality.emulated.watch import watched
from fastwan.quality.verify.components import Runtime, text_encoder
from fastwan.quality.verify.graphs import random_inputs
from fastwan.quality.verify.subject import Subject
from fastwan.runtime.device.session import Session
from fastwan.runtime.model.dit import DiT
from fastwan.runtime.model.executor import Array
from fastwan.runtime.model.loop import combine, denoise
from fastwan.runtime.model.schedule import Schedule


@dataclass(frozen=True)
class Played:
    """The denoising loop of one video.

    Attributes:
        velocities: of each step.
        states: latents after each step; the last ones are clean.
    """

    velocities: tuple[Array, ...]
    states: tuple[Array, ...]


class Player(Protocol):
    """A bundle and a sampler, ready to play."""

    def play(
        self, text: Array, noises: Sequence[Array], states: Sequence[Array] | None = None
    ) -> Played:
        """Run the loop.

        Args:
            text: embeddings of the prompt, [1, text_length, text_dim].
            noises: what `fastwan.runtime.model.noise.draw` returns.
            states: latents to go on with after each step, in place of its own.
        """

    def hidden(self, text: Array, latents: Array) -> Mapping[str, Array]:
        """Hidden states between the blocks in the first step, by tensor; those it can tell."""

    def frames(self, latents: Array) -> Array:
        """Frames of clean latents, [F, H, W, 3] uint8."""

    def close(self) -> None: ...


class CpuPlayer:
    """The CPU reference at the shape of the checks.

    Args:
        subject: the bundle.
        schedule: of the sampler; its guidance is not used.
    """

    def __init__(self, subject: Subject, schedule: Schedule) -> None:
        self._schedule = schedule
        self._stack = ExitStack()
        runtime = Runtime(subject)

        def lowered() -> DiT[Array]:
            return subject.lowered.executors(subject.lowered.parts)

        self._dit = runtime.dit(lowered) if ships_its_reference(subject) else lowered()
        self._decoder = self._stack.enter_context(runtime.decoder())

    def play(
        self, text: Array, noises: Sequence[Array], states: Sequence[Array] | None = None
    ) -> Played:
        context = self._dit.prepare(text)
        velocities: list[Array] = []
        seen: list[Array] = []

        def velocity(latents: Array, timestep: int) -> Array:
            velocities.append(self._dit.velocity(latents, timestep, context).astype(np.float32))
            return velocities[-1]

        def on_step(index: int, timestep: int, latents: Array) -> Array | None:
            seen.append(latents)
            return None if states is None else states[index]

        denoise(velocity, noises[0], self._schedule, noises[1:], combine=combine, on_step=on_step)
        return Played(tuple(velocities), tuple(seen))

    def hidden(self, text: Array, latents: Array) -> Mapping[str, Array]:
        return {}  # its graphs are looked into by `fastwan.quality.compare.blocks`

    def frames(self, latents: Array) -> Array:
        assert self._decoder is not None, "only asked for where both bundles have a decoder"
        return np.stack([frame.copy() for frame in self._decoder.frames(latents)])

    def close(self) -> None:
        self._stack.close()


class DevicePlayer:
    """A session on a GPU, or on what stands for one, at the bundle's own shape.

    Args:
        setting: where it runs.
    """

    def __init__(self, subject: Subject, schedule: Schedule, setting: Setting) -> None:
        platform, self._watch = watched(setting.platform, setting.at)
        self._at = setting.at
        self._session = Session(platform, subject.bundle, schedule)

    def play(
        self, text: Array, noises: Sequence[Array], states: Sequence[Array] | None = None
    ) -> Played:
        self._session.prepare(text)
        velocities: list[Array] = []
        seen: list[Array] = []

        def on_step(index: int, timestep: int, latents: Array) -> Array | None:
            velocities.append(step_velocity(self._session, self._at, index))
            seen.append(latents)
            return None if states is None else states[index]

        self._session.denoise(noises, on_step)
        return Played(tuple(velocities), tuple(seen))

    def hidden(self, text: Array, latents: Array) -> Mapping[str, Array]:
        session, watch = self._session, self._watch
        player = session.load()
        session.prepare(text)
        player.memory.write(session.recording.noises[0], latents)
        watch.hidden.clear()
        watch.regions.clear()
        run_watched_step(session, watch)
        return {name: made.float().cpu().numpy() for name, made in watch.hidden.items()}

    def frames(self, latents: Array) -> Array:
        return self._session.decode(latents).copy()

    def close(self) -> None:
        self._session.close()


def embeddings(a: Subject, b: Subject, prompts: Sequence[str]) -> list[tuple[Array, Array]]:
    """Embeddings of each prompt by the text encoders of both bundles, fp32.

    Where a bundle has none, the same random ones stand in for both.
    """
    if any("text_encoder" not in subject.graphs for subject in (a, b)):
        drawn = [random_inputs(a, seed)[1] for seed in range(len(prompts))]
        return [(each, each) for each in drawn]
    encoders = [text_encoder(subject) for subject in (a, b)]
    made = [[e.encode(prompt).astype(np.float32) for prompt in prompts] for e in encoders]
    return list(zip(*made, strict=True))
