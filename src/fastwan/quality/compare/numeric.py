"""The same prompts and seeds through two bundles: steps, blocks and frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from fastwan.config import SAMPLERS, SamplerSpec
from fastwan.errors import BadInput
from fastwan.outputs import OutputFolder
from fastwan.progress import Progress, stage
from fastwan.quality.compare.blocks import BLOCK_LIMIT
from fastwan.quality.compare.inside import View, compare_inside
from fastwan.quality.compare.players import Played, Player, embeddings
from fastwan.quality.compare.report import (
    FrameDifference,
    NumericComparison,
    StepDifference,
)
from fastwan.quality.frames import largest_difference, lpips, psnr, ssim, worst_frame
from fastwan.quality.verify.graphs import relative_difference
from fastwan.quality.verify.steps import LONGEST, checked_sampler
from fastwan.quality.verify.subject import Subject
from fastwan.runtime.model.executor import Array
from fastwan.runtime.model.noise import draw, generator_for
from fastwan.runtime.model.samplers import schedule_of
from fastwan.runtime.model.schedule import Schedule

OpenPlayer = Callable[[Subject, Schedule], Player]


@dataclass
class Compared:
    """A comparison, and what of it is not in the report.

    Attributes:
        videos: frames of the first video by both bundles; empty without decoders.
    """

    figures: NumericComparison
    videos: list[Array] = field(default_factory=list)


@dataclass(frozen=True)
class Work:
    """What is compared.

    Attributes:
        schedule: of the sampler, without guidance.
        embeds: by prompt, the embeddings of both bundles.
        noises: by seed.
    """

    schedule: Schedule
    embeds: Sequence[tuple[Array, Array]]
    noises: Sequence[list[Array]]

    @property
    def videos(self) -> list[tuple[int, int]]:
        """Index of the prompt and of the seed of each video."""
        return [(p, s) for p in range(len(self.embeds)) for s in range(len(self.noises))]


def require_comparable(a: Subject, b: Subject) -> None:
    """Refuse bundles whose videos have no common latents.

    Raises:
        BadInput: they are of different sizes or transformers, or one has none.
    """
    for subject in (a, b):
        if "dit" not in subject.present:
            raise BadInput("the bundle has no transformer", where=str(subject.bundle.root))
    facts = [
        {
            "a video of": subject.check_shape,
            "latent channels": subject.dit_config.in_channels,
            "blocks": subject.dit_config.num_layers,
            "a width of": subject.dit_config.num_heads * subject.dit_config.head_dim,
            "prompts of": subject.dit_config.text_length,
        }
        for subject in (a, b)
    ]
    for name, value in facts[0].items():
        if facts[1][name] != value:
            raise BadInput(
                f"bundles cannot be played side by side: {name} {value} and {facts[1][name]}",
                fix="compare bundles of one size, or pass --static",
            )


def chosen_sampler(a: Subject, b: Subject, name: str | None) -> SamplerSpec:
    """The sampler that both bundles are played with, at most a few steps of it.

    By default the bundles' own one; of two the one with fewer steps.
    """
    if name is not None:
        spec = SAMPLERS[name]
        return spec if spec.timesteps else replace(spec, steps=min(spec.steps, LONGEST))
    return checked_sampler(min((a, b), key=lambda each: each.manifest.sampler_spec().steps))


def compare_numeric(
    a: Subject,
    b: Subject,
    *,
    open_player: OpenPlayer,
    device: str,
    sampler: str | None,
    prompts: Sequence[str],
    seeds: Sequence[int],
    by_block: bool,
    limit: float | None,
    tensors: OutputFolder | None,
    progress: Progress,
) -> Compared:
    """Play both bundles and tell where they part.

    Args:
        open_player: opens a bundle on the device.
        limit: relative L2 difference beyond which a block counts as parted; `BLOCK_LIMIT` if None.
        tensors: where the compared tensors of `by_block` go.

    Raises:
        BadInput: see `require_comparable`.
    """
    require_comparable(a, b)
    spec = chosen_sampler(a, b, sampler)
    schedule = schedule_of(replace(spec, guidance=1.0))
    shape = a.check_shape.latents(a.dit_config.in_channels)
    noises = [draw(shape, schedule, generator_for(None, seed)) for seed in seeds]
    with stage(progress, "encode prompts"):
        work = Work(schedule, embeddings(a, b, prompts), noises)
    decode = all("decoder" in subject.present for subject in (a, b))
    first = _play(a, work, partial(_first, decode=decode), 0, open_player, progress)
    second = _play(b, work, partial(_second, decode=decode), 1, open_player, progress, first)
    names = list(zip(work.videos, first, second, strict=True))
    inside: dict[str, Any] = {}
    if by_block:
        with stage(progress, "compare blocks"):
            hidden = None if device == "cpu" else (first[0].hidden, second[0].hidden)
            view = View(work.embeds[0], work.noises[0][0], schedule.steps[0].timestep)
            inside = compare_inside(a, b, view, hidden, limit or BLOCK_LIMIT, tensors)
    figures = NumericComparison(
        device=device,
        sampler=spec.name,
        prompts=tuple(prompts),
        seeds=tuple(seeds),
        shape=a.at,
        text=tuple(relative_difference(x, y) for x, y in work.embeds),
        steps=tuple(
            each
            for (prompt, seed), one, two in names
            for each in _steps(prompt, seeds[seed], schedule, one.played, two)
        ),
        frames=tuple(
            _frames(prompt, seeds[seed], one.frames, two.frames)
            for (prompt, seed), one, two in names
            if one.frames is not None and two.frames is not None
        ),
        **inside,
    )
    videos = [v.frames for v in (first[0], second[0]) if v.frames is not None]
    return Compared(figures, videos if len(videos) == 2 else [])


@dataclass(frozen=True)
class Video:
    """One video of a bundle.

    Attributes:
        played: on its own way.
        led: with the first bundle's latents after each step; of the second bundle alone.
        hidden: hidden states of the first step where the device tells them.
    """

    played: Played
    led: Played | None
    frames: Array | None
    hidden: dict[str, Array]


def _first(
    player: Player, text: Array, noises: list[Array], _: Video | None, decode: bool
) -> Video:
    played = player.play(text, noises)
    frames = player.frames(played.states[-1]) if decode else None
    return Video(played, None, frames, dict(player.hidden(text, noises[0])))


def _second(
    player: Player, text: Array, noises: list[Array], before: Video | None, decode: bool
) -> Video:
    assert before is not None
    led = player.play(text, noises, before.played.states)
    video = _first(player, text, noises, None, decode)
    return replace(video, led=led)


def _play(
    subject: Subject,
    work: Work,
    video: Callable[..., Video],
    index: int,
    open_player: OpenPlayer,
    progress: Progress,
    before: Sequence[Video] = (),
) -> list[Video]:
    """Play every video of a bundle."""
    with stage(progress, f"play {subject.bundle.root.name}"):
        player = open_player(subject, work.schedule)
        try:
            return [
                video(
                    player,
                    work.embeds[prompt][index],
                    work.noises[seed],
                    before[each] if before else None,
                )
                for each, (prompt, seed) in enumerate(work.videos)
            ]
        finally:
            player.close()


def _steps(
    prompt: int, seed: int, schedule: Schedule, one: Played, two: Video
) -> list[StepDifference]:
    assert two.led is not None
    return [
        StepDifference(
            prompt=prompt,
            seed=seed,
            step=index,
            timestep=step.timestep,
            velocity=relative_difference(one.velocities[index], two.led.velocities[index]),
            largest=float(np.abs(one.velocities[index] - two.led.velocities[index]).max()),
            drift=relative_difference(one.states[index], two.played.states[index]),
        )
        for index, step in enumerate(schedule.steps)
    ]


def _frames(prompt: int, seed: int, a: Array, b: Array) -> FrameDifference:
    if a.shape != b.shape:
        raise BadInput(f"decoders make {list(a.shape)} and {list(b.shape)}", fix="pass --static")
    ratio = psnr(a, b)
    return FrameDifference(
        prompt=prompt,
        seed=seed,
        frames=len(a),
        psnr=ratio if np.isfinite(ratio) else None,
        ssim=ssim(a, b),
        lpips=lpips(a, b),
        largest=largest_difference(a, b),
        worst_frame=worst_frame(a, b),
    )
