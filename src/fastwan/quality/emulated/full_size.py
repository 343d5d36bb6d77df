"""One run of a bundle at its full size, and the module beside it: what the checks look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from fastwan.export.attentions import Form
from fastwan.plugins.lifted import TEXT, derived
from fastwan.quality.emulated.module import Reference
from fastwan.quality.emulated.watch import Watch, watched
from fastwan.quality.verify.graphs import random_inputs
from fastwan.quality.verify.steps import checked_sampler
from fastwan.quality.verify.subject import Subject
from fastwan.runtime.device.session import Platform, Session
from fastwan.runtime.emulated.engines import Torch
from fastwan.runtime.model.executor import Array
from fastwan.runtime.model.loop import combine, denoise
from fastwan.runtime.model.noise import DEFAULT_SEED, draw, generator_for
from fastwan.runtime.model.samplers import schedule_of
from fastwan.runtime.recording.operations import LaunchRegion, RunEngine
from fastwan.runtime.recording.recorder import COMPUTE
from fastwan.runtime.recording.tensors import Tensor as RecordedTensor


@dataclass(frozen=True)
class Setting:
    """Where a bundle is run, and what its reference's attention is.

    Attributes:
        platform: that emulates the target.
        at: torch's view of the platform's memory.
        attention: of the module; regions are held against their own reference beside.
    """

    platform: Platform
    at: Torch
    attention: Form


class FullSize:
    """One run of a bundle on an emulating device, and the module beside it.

    Args:
        subject: its `check_shape` is the bundle's own shape.
    """

    def __init__(self, subject: Subject, setting: Setting) -> None:
        self.subject = subject
        self._setting = setting
        # One prompt: guidance is arithmetic between two runs of the same engines.
        self.schedule = schedule_of(replace(checked_sampler(subject), guidance=1.0))
        platform, self.watch = watched(setting.platform, setting.at)
        self._session = Session(platform, subject.bundle, self.schedule)
        shape = self._session.recording.latents.shape
        self.noises = draw(shape, self.schedule, generator_for(None, DEFAULT_SEED))
        self.text = random_inputs(subject)[1]

    @cached_property
    def reference(self) -> Reference:
        return Reference(self.subject, self._setting.attention, self.device)

    @cached_property
    def context(self) -> list[tuple[Any, Any]]:
        return self.reference.context(self.text)

    @cached_property
    def velocities(self) -> list[tuple[Array, int, Array]]:
        """Latents, timestep and velocity of each step; what passed in the first one is watched."""
        session, player = self._session, self._session.load()
        # Another prompt first: keys that stay from it would show.
        session.prepare(random_inputs(self.subject, seed=1)[1])
        session.prepare(self.text)
        for tensor, noise in zip(session.recording.noises, self.noises, strict=True):
            player.memory.write(tensor, noise)
        run_watched_step(session, self.watch)
        seen: list[tuple[Array, int, Array]] = []
        latents = self.noises[0]

        def on_step(index: int, timestep: int, state: Array) -> None:
            nonlocal latents
            seen.append((latents, timestep, step_velocity(session, self._setting.at, index)))
            latents = state

        session.denoise(self.noises, on_step)
        return seen

    def _content(self, tensor: RecordedTensor) -> torch.Tensor:
        """What lies in a tensor of the recording."""
        player = self._session.load()
        return self._setting.at.tensor(player.address(tensor), tensor.shape, tensor.dtype)

    @cached_property
    def of_prompt(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """What regions read of a prompt and the exported graph does not hold, by name.

        Each as it lies on the device after the video of `velocities`, and as it follows from the
        prompt.
        """
        _ = self.velocities
        text = torch.from_numpy(self.text).to(self.device, torch.bfloat16)
        found = {}
        for operation in (o for stage in self._session.recording.stages for o in stage.operations):
            made = operation.outputs if isinstance(operation, RunEngine) else {}
            for name, tensor in made.items():
                known = derived(name)
                if known is not None and known.source == TEXT:
                    found[name] = self._content(tensor), known.compute(text)
        return found

    @cached_property
    def frames(self) -> Array:
        """The video from noise, as one launch."""
        return self._session.video(self.noises).copy()

    def decode(self, latents: Array) -> Array:
        """Frames of latents by the bundle's decoder."""
        return self._session.decode(latents).copy()

    @property
    def device(self) -> torch.device:
        """Where the module runs."""
        return self._setting.at.device

    @property
    def has_frames(self) -> bool:
        return self._session.recording.frames is not None

    def latents_of(self, velocity: Callable[[Array, int], Array]) -> Array:
        """Clean latents where a model goes its own way from the same noise."""
        return denoise(velocity, self.noises[0], self.schedule, self.noises[1:], combine=combine)

    def close(self) -> None:
        self._session.close()


def run_watched_step(session: Session, watch: Watch) -> None:
    """Enqueue the first step of a session and watch what passes in it.

    Noises and the prompt's keys and values have to be there.
    """
    player = session.load()
    first = [stage for stage in session.recording.stages if stage.name == "step_0"]
    watch.launches = [
        operation for stage in first for operation in stage.operations
        if isinstance(operation, LaunchRegion)
    ]  # fmt: skip
    watch.on = True
    try:
        player.enqueue(first)
        player.synchronize()
    finally:
        watch.on = False


def step_velocity(session: Session, at: Torch, index: int) -> Array:
    """What the transformer made in a step that has just run, fp32.

    Args:
        at: torch's view of the session's memory.
    """
    (stage,) = (s for s in session.recording.stages if s.name == f"step_{index}")
    made = [
        operation.outputs["velocity"]
        for operation in stage.operations
        if isinstance(operation, RunEngine) and "velocity" in operation.outputs
    ]
    player = session.load()
    player.device.synchronize(player.streams[COMPUTE])
    tensor = made[-1]
    content = at.tensor(player.address(tensor), tensor.shape, tensor.dtype)
    return np.asarray(content.float().cpu().numpy())
