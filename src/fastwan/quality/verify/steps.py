"""`step_i` and `frames`: the whole quantised path against the model's own sensitivity.

FP4 activations are chaotic: one value that falls on the other side of a rounding tie changes the
scale or a code of its block, and a few layers later everything. So no fixed limit means anything.
The module is run against itself with the smallest change there is, and the graph has to stay as
close to it as the module does to itself, times `MARGIN`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fastwan.config import SamplerSpec, VideoShape
from fastwan.export.attentions import EXACT
from fastwan.export.models.taehv import StreamingStep
from fastwan.export.models.wan import WanDiT
from fastwan.quality.verify.graphs import relative_difference
from fastwan.quality.verify.modules import dit_module, moved_scales, scale_names
from fastwan.quality.verify.report import Check
from fastwan.quality.verify.subject import Subject
from fastwan.runtime.model.dit import DiT
from fastwan.runtime.model.executor import Array
from fastwan.runtime.model.loop import combine, denoise, guided
from fastwan.runtime.model.noise import DEFAULT_SEED, draw, generator_for
from fastwan.runtime.model.samplers import schedule_of

MARGIN = 2.0
"""Limit over the largest sensitivity measured.

A trial moves a few numbers by one unit in the last place; ONNX Runtime sums in another order in
every operator and rounds less often inside a fused attention. That moves the result hardly
further, because the chaos saturates: moving the latents of the tiny model by 1e-3 in place of 1e-7
gives 4.7e-2 in place of 4.1e-2. Two unrelated paths are sqrt(2) times as far apart as each is from
what lies between them, and as much again is left for the spread of a few trials.
"""

TRIALS = 4
LATENTS_MOVED_BY = 1e-7
LONGEST = 3
"""Steps that are played of a sampler that has more; `sampler` holds all of its constants."""

BF16_UNIT = 2.0**-8
"""Change of the latents where the smallest one moves nothing: a few tokens have so few values that
none of them lies next to a tie."""
PIXEL_FLOOR = 1.0
"""Least limit of the frames in levels: pixels are truncated, so one level may always differ."""

Velocity = Callable[[Array, int], Array]


class Model:
    """The torch module as a velocity of the denoise loop; the last bits of its scales may move.

    Args:
        module: quantised, in bf16.
        text: prompt embeddings [1, text_length, text_dim].
        scales: ends of the names of every fp32 factor of a weight.
        trial: 0 for the model itself; other numbers seed a change of the latents by `moved_by` and
            of every fp32 scale of a weight by one unit in the last place, up or down. The latents
            alone would not do: the model rounds them to bf16, which mostly undoes the change.
        moved_by: change of the latents over their mean magnitude.
    """

    def __init__(
        self,
        module: WanDiT,
        text: Array,
        scales: tuple[str, ...] = (),
        trial: int = 0,
        moved_by: float = LATENTS_MOVED_BY,
    ) -> None:
        self._module, self._text, self._trial = module, torch.from_numpy(text), trial
        self._scales, self._moved_by = scales, moved_by
        self._known: dict[tuple[bytes, int], Array] = {}

    def __call__(self, latents: Array, timestep: int) -> Array:
        key = (latents.tobytes(), timestep)
        if key not in self._known:
            self._known[key] = self._run(latents, timestep)
        return self._known[key]

    @torch.no_grad()
    def _run(self, latents: Array, timestep: int) -> Array:
        x, time = torch.from_numpy(latents), torch.tensor([float(timestep)])
        if not self._trial:
            return np.asarray(self._module(x, time, self._text).float().numpy())
        generator = torch.Generator().manual_seed(self._trial)
        x = x + self._moved_by * x.abs().mean() * torch.randn(x.shape, generator=generator)
        with moved_scales(self._module, self._scales, generator, _by_one_unit):
            return np.asarray(self._module(x, time, self._text).float().numpy())


def _by_one_unit(scale: Tensor, up: Tensor) -> Tensor:
    return torch.nextafter(scale, torch.where(up, torch.inf, -torch.inf))


def checked_sampler(subject: Subject) -> SamplerSpec:
    """The bundle's sampler as it is played here: with fewer steps where it derives many."""
    spec = subject.manifest.sampler_spec()
    return spec if spec.timesteps else replace(spec, steps=min(spec.steps, LONGEST))


def step_names(subject: Subject) -> tuple[str, ...]:
    """Names of the checks, one for each step that is played."""
    return tuple(f"step_{index}" for index in range(checked_sampler(subject).steps))


def check_video(
    subject: Subject,
    dit: DiT[Array],
    texts: Sequence[Array],
    decode: Callable[[Array], Array] | None,
) -> Sequence[Check]:
    """The denoise loop on ONNX Runtime and on the module, and what the decoder makes of it.

    Each step is compared for the same latents, those of the ONNX Runtime loop; of a guided sampler
    that is the velocity of both prompts together. The frames are compared after each has gone its
    own way through the loop.

    Args:
        dit: the runtime's component over the CPU reference.
        texts: embeddings of the prompt and, where the sampler is guided, of a negative one.
        decode: clean latents to frames by the runtime's decoder, None to leave the frames out.
    """
    schedule = schedule_of(checked_sampler(subject))
    shape = subject.check_shape.latents(subject.dit_config.in_channels)
    noises = draw(shape, schedule, generator_for(None, DEFAULT_SEED))
    recipe, attention = subject.recipe, subject.attention
    module = dit_module(
        subject, torch.bfloat16, activations=recipe.quantised, attention=attention.reference
    )
    scales = scale_names(recipe)

    def modelled(
        module: WanDiT,
        scales: tuple[str, ...] = (),
        trial: int = 0,
        moved_by: float = LATENTS_MOVED_BY,
    ) -> Velocity:
        models = [Model(module, text, scales, trial, moved_by) for text in texts]
        return guided(models, schedule.guidance, combine=combine)

    model, *trials = (modelled(module, scales, trial) for trial in range(1 + TRIALS))
    if not (recipe.quantised or attention.quantised):
        # Nothing is chaotic then: what a change grows to is what rounding itself makes of it.
        exact = dit_module(subject, torch.float32, activations=False, attention=EXACT)
        trials.append(modelled(exact))
    coarse = [modelled(module, scales, trial, BF16_UNIT) for trial in range(1, 1 + TRIALS)]
    runs = [partial(dit.velocity, context=dit.prepare(text)) for text in texts]
    played = guided(runs, schedule.guidance, combine=combine)
    visited: list[tuple[Array, int, Array]] = []

    def velocity(latents: Array, timestep: int) -> Array:
        result = played(latents, timestep).astype(np.float32)
        visited.append((latents, timestep, result))
        return result

    def run(velocity: Velocity) -> Array:
        return denoise(velocity, noises[0], schedule, noises[1:], combine=combine)

    clean = run(velocity)
    checks = []
    for name, (latents, timestep, result) in zip(step_names(subject), visited, strict=True):
        expected = model(latents, timestep)
        moved = [relative_difference(expected, trial(latents, timestep)) for trial in trials]
        if not any(moved):
            trials += coarse
            moved = [relative_difference(expected, trial(latents, timestep)) for trial in trials]
        checks.append(
            Check(
                name=name,
                metric="relative L2 difference of the velocity to torch, quantised",
                value=relative_difference(expected, result),
                limit=MARGIN * max(moved),
                label="emulated",
                note=f"timestep {timestep}, {subject.at}; sensitivity {max(moved):.2e}",
            )
        )
    if decode is not None:
        expected = decode(run(model))
        sensitivity = max(rms(expected, decode(run(trial))) for trial in trials)
        checks.append(
            Check(
                name="frames",
                metric="root mean square difference in levels to torch, quantised",
                value=rms(expected, decode(clean)),
                limit=MARGIN * max(sensitivity, PIXEL_FLOOR),
                label="emulated",
                note=f"{len(expected)} frames, {subject.at}; sensitivity {sensitivity:.2f} levels",
            )
        )
    return checks


def rms(expected: Array, got: Array) -> float:
    """Root mean square difference of two videos in levels; infinite where shapes differ."""
    if expected.shape != got.shape or not expected.size:
        return float("inf")
    difference = expected.astype(np.float64) - got.astype(np.float64)
    return float(np.sqrt(np.mean(difference**2)))


@torch.no_grad()
def torch_frames(
    step: StreamingStep, memories: Sequence[torch.Tensor], latents: Array, trim: int
) -> Array:
    """Frames [F, H, W, 3] uint8 by the torch decoder, one latent at a time.

    Args:
        memories: zero memories in the decoder's dtype.
        latents: [1, C, T, h, w].
        trim: leading frames to drop.
    """
    state = tuple(memories)
    frames = []
    for index in range(latents.shape[2]):
        latent = torch.from_numpy(np.ascontiguousarray(latents[:, :, index]))
        made, *rest = step(latent.to(state[0].dtype), *state)
        state = tuple(rest)
        frames.append(made.numpy())
    return np.concatenate(frames)[trim:]


def latents_of(shape: VideoShape, channels: int, seed: int = 0) -> Array:
    """Random clean latents [1, C, T, h, w], fp32."""
    generator = torch.Generator().manual_seed(seed)
    return np.asarray(torch.randn(shape.latents(channels), generator=generator).numpy())
