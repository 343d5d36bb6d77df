"""What can be made, and which of it a request means."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from fastwan.config import SamplerSpec, VideoShape
from fastwan.errors import BadInput
from fastwan.runtime.guidance import check_negative, guided_schedule
from fastwan.runtime.model.prompt import check_prompt
from fastwan.runtime.request import Request
from fastwan.serve.jobs import Asked
from fastwan.serve.wire import CreateVideo, seconds_text, size_text


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What a player can make.

    Attributes:
        model: its name.
        shapes: the first is the default.
        samplers: by name; the first is the default.
        fps: frames a second.
        device: that it runs on.
    """

    model: str
    shapes: tuple[VideoShape, ...]
    samplers: Mapping[str, SamplerSpec]
    fps: int
    device: str


def resolve(offer: Offer, request: CreateVideo, *, longest_prompt: int) -> Asked:
    """The video that a request means, with nothing left to a default.

    Args:
        longest_prompt: characters.

    Raises:
        BadInput: none that can be made; it says what can. ``where`` is the field of the request.
    """
    for name in ("prompt", "negative_prompt"):
        _check_length(name, getattr(request, name), longest_prompt)
    check_prompt(request.prompt)
    if request.model not in (None, offer.model):
        raise BadInput(
            f"there is no model {request.model!r}", where="model", fix=f"name {offer.model}"
        )
    sampler = request.sampler or next(iter(offer.samplers))
    if sampler not in offer.samplers:
        raise BadInput(
            f"the bundle has no sampler {sampler!r}",
            where="sampler",
            fix="one of " + ", ".join(offer.samplers),
        )
    schedule = guided_schedule(offer.samplers[sampler], request.guidance_scale)
    shape = _shape(offer, request)
    asked = Asked(
        model=offer.model,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        guidance_scale=request.guidance_scale,
        # 32 bits, which whatever reads JSON keeps.
        seed=secrets.randbits(32) if request.seed is None else request.seed,
        sampler=sampler,
        steps=len(schedule.steps),
        height=shape.height,
        width=shape.width,
        num_frames=shape.num_frames,
        fps=offer.fps,
    )
    check_negative(schedule, Request(prompt=asked.prompt, negative_prompt=asked.negative_prompt))
    return asked


def serves(offer: Offer, asked: Asked) -> bool:
    """Whether a video that was resolved before is one that can be made now."""
    return (
        asked.model == offer.model
        and asked.shape in offer.shapes
        and asked.sampler in offer.samplers
        and asked.steps == offer.samplers[asked.sampler].steps
    )


def _check_length(name: str, text: str | None, longest: int) -> None:
    if text is not None and len(text) > longest:
        raise BadInput(
            f"{name} has {len(text):,} characters, {longest:,} at most",
            where=name,
            fix="shorten it; the model reads its first tokens only",
        )


def _shape(offer: Offer, request: CreateVideo) -> VideoShape:
    """The first shape that is all that was asked for."""
    for shape in offer.shapes:
        if _fits(shape, request, offer.fps):
            return shape
    made = ", ".join(
        f"size {size_text(each)} with seconds {' or '.join(lengths(each, offer.fps))} "
        f"(num_frames {each.num_frames})"
        for each in offer.shapes
    )
    given = {name: getattr(request, name) for name in ("size", "seconds", "num_frames")}
    asked = {name: value for name, value in given.items() if value is not None}
    raise BadInput(
        ", ".join(f"{name} {value}" for name, value in asked.items()) + " cannot be made",
        where=next(iter(asked)),
        fix=f"the bundle makes {made}",
    )


def _fits(shape: VideoShape, request: CreateVideo, fps: int) -> bool:
    return (
        request.size in (None, size_text(shape))
        and request.num_frames in (None, shape.num_frames)
        and request.seconds in (None, *lengths(shape, fps))
    )


def lengths(shape: VideoShape, fps: int) -> tuple[str, ...]:
    """Seconds that a request may name a shape by: the exact length, and the whole one nearest."""
    exact = seconds_text(shape.num_frames, fps)
    whole = str(max(1, round(shape.num_frames / fps)))
    return (exact,) if exact == whole else (exact, whole)
