"""Classifier-free guidance of a call: its scale, and what it is guided away from."""

from __future__ import annotations

import math
from dataclasses import replace

from fastwan.config import MAX_GUIDANCE, SamplerSpec
from fastwan.errors import BadInput, shown
from fastwan.runtime.model.samplers import schedule_of
from fastwan.runtime.model.schedule import Schedule
from fastwan.runtime.request import Request

_DISTILLED = "the distilled model runs without guidance"


def guided_schedule(spec: SamplerSpec, guidance_scale: object = None) -> Schedule:
    """Schedule of a sampler with the scale of guidance that a caller asks for.

    Args:
        guidance_scale: None, or the sampler's own; 1 at most is none, as for diffusers.

    Raises:
        BadInput: no such number, or above 1 for a model that was trained without guidance.
    """
    if guidance_scale is None:
        return schedule_of(spec)
    try:
        scale = float(guidance_scale)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        scale = math.nan
    if spec.guidance == 1:
        if not -math.inf < scale <= 1:
            raise BadInput(
                f"guidance_scale is {shown(guidance_scale)}: {_DISTILLED}",
                where="guidance_scale",
                fix="leave it out, or pass 1",
            )
    elif not -math.inf < scale < MAX_GUIDANCE:
        raise BadInput(
            f"guidance_scale is {shown(guidance_scale)}, no number below {MAX_GUIDANCE}",
            where="guidance_scale",
            fix=f"leave it out, or pass {spec.guidance:g}",
        )
    return schedule_of(replace(spec, guidance=max(1.0, scale)))


def check_negative(schedule: Schedule, request: Request) -> None:
    """Refuse a negative prompt that would have no effect.

    Raises:
        BadInput: there is one, and the schedule has no guidance.
    """
    if schedule.guidance != 1:
        return
    if request.negative_prompt:
        raise BadInput(
            f"negative_prompt would have no effect: {_DISTILLED}, or it was turned off",
            where="negative_prompt",
            fix="leave it out, and say in the prompt what there is to see",
        )
    if request.negative_prompt_embeds is not None:
        raise BadInput(
            f"negative_prompt_embeds would have no effect: {_DISTILLED}, or it was turned off",
            where="negative_prompt_embeds",
            fix="leave it out",
        )
