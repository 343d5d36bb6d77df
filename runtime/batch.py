"""A call with the arguments of diffusers' WanPipeline, divided into one request a video.

What a bundle cannot serve is refused and says why; nothing is passed over.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastwan.errors import BadInput
from fastwan.runtime.arguments import to_floats
from fastwan.runtime.model.checks import integer
from fastwan.runtime.model.noise import DEFAULT_SEED, seed_of
from fastwan.runtime.model.schedule import Schedule
from fastwan.runtime.request import Request

if TYPE_CHECKING:
    from fastwan.runtime.model.executor import Array


class UnknownArgument(BadInput, TypeError):
    """An argument of another name; Python's own calls raise TypeError for it."""


def refuse_unknown(unknown: Sequence[str], known: Sequence[str]) -> None:
    """Refuse arguments that do not exist.

    Raises:
        UnknownArgument: there are some.
    """
    if unknown:
        close = [each for name in unknown for each in difflib.get_close_matches(name, known, 1)]
        raise UnknownArgument(
            f"no argument {', '.join(map(repr, unknown))}",
            fix=f"did you mean {', '.join(close)}?" if close else "there are " + ", ".join(known),
        )


def check_built_in(
    schedule: Schedule,
    num_inference_steps: object = None,
    attention_kwargs: object = None,
    guidance_scale_2: object = None,
) -> None:
    """Refuse another number of steps than the sampler's, and arguments of what is not there.

    Raises:
        BadInput: naming the argument.
    """
    steps = len(schedule.steps)
    if num_inference_steps is not None:
        wanted = integer(num_inference_steps, "num_inference_steps")
        if wanted != steps:
            raise BadInput(
                f"{wanted} steps were asked for, sampler {schedule.name} makes {steps}",
                where="num_inference_steps",
                fix="leave it out; the sampler was built for these steps",
            )
    if guidance_scale_2 is not None:
        raise BadInput(
            "guidance_scale_2 is of a second transformer, which a bundle does not have",
            where="guidance_scale_2",
            fix="leave it out",
        )
    if attention_kwargs is not None and attention_kwargs != {}:
        raise BadInput(
            "attention_kwargs reach no attention: it is compiled",
            where="attention_kwargs",
            fix="leave it out",
        )


def requests_of(
    *,
    prompt: object,
    prompt_embeds: object,
    negative_prompt: object = None,
    negative_prompt_embeds: object = None,
    num_videos_per_prompt: object,
    generator: object,
    seed: object,
    latents: object,
    **each: Any,
) -> list[Request]:
    """One request a video: the videos of the first prompt, then those of the second.

    The i-th video of every prompt has seed ``seed + i``, so that it is the same alone. One
    generator draws for one video after the other, a list has one for each video.

    Args:
        prompt: one or several.
        prompt_embeds: [B, up to text_length, text_dim] in the place of prompts.
        negative_prompt: one for all prompts, or one each.
        negative_prompt_embeds: likewise, in its place.
        latents: [videos, C, T, h, w].
        each: what the requests have in common.

    Raises:
        BadInput: an argument that cannot be used, or that has another number of videos.
    """
    if (prompt is None) == (prompt_embeds is None):
        raise BadInput("give either prompt or prompt_embeds", where="prompt")
    texts: list[dict[str, Any]]
    if prompt_embeds is None:
        prompts = list(prompt) if isinstance(prompt, list | tuple) else [prompt]
        texts = [{"prompt": text} for text in prompts]
    else:
        embeds = _batch(prompt_embeds, "prompt_embeds", 3, "[prompts, length, text_dim]")
        texts = [{"prompt_embeds": embeds[i : i + 1]} for i in range(len(embeds))]
    if not texts:
        raise BadInput("there is no prompt", where="prompt", fix="one at least")
    for text, negative in zip(
        texts, _negatives(negative_prompt, negative_prompt_embeds, len(texts)), strict=True
    ):
        text |= negative
    copies = 1
    if num_videos_per_prompt is not None:
        copies = integer(num_videos_per_prompt, "num_videos_per_prompt")
    if copies < 1:
        raise BadInput(f"{copies} videos were asked for", where="num_videos_per_prompt")
    count = len(texts) * copies
    generators: list[Any] = [generator] * count
    if isinstance(generator, list | tuple):
        generators = list(generator)
    if len(generators) != count:
        raise BadInput(
            f"{len(generators)} generators were given for {count} videos", where="generator"
        )
    noise: list[Array | None] = [None] * count
    if latents is not None:
        rows = _batch(latents, "latents", 5, "[videos, C, T, h, w]")
        if len(rows) != count:
            raise BadInput(f"latents are of {len(rows)} videos, not of {count}", where="latents")
        noise = [rows[i : i + 1] for i in range(count)]
    first = seed_of(seed)
    if generator is not None and seed is not None and first != DEFAULT_SEED:
        raise BadInput("give either a generator or a seed", where="generator")
    return [
        Request(
            **texts[index // copies],
            generator=generators[index],
            seed=(first + index % copies) % 2**64,
            latents=noise[index],
            **each,
        )
        for index in range(count)
    ]


def _negatives(prompt: object, embeds: object, count: int) -> list[dict[str, Any]]:
    """What each of `count` prompts is guided away from, as fields of a request."""
    name, rows = "negative_prompt", prompt
    if embeds is not None:
        if prompt is not None:
            raise BadInput(
                "give either negative_prompt or negative_prompt_embeds", where="negative_prompt"
            )
        name = "negative_prompt_embeds"
        batch = _batch(embeds, name, 3, "[prompts, length, text_dim]")
        rows = [batch[i : i + 1] for i in range(len(batch))]
    each = list(rows) if isinstance(rows, list | tuple) else [rows]
    if len(each) not in (1, count):
        raise BadInput(f"{name} are {len(each)} for {count} prompts", where=name)
    return [{name: row} for row in each * (count // len(each))]


def _batch(values: object, name: str, axes: int, form: str) -> Array:
    array = to_floats(values, name)
    if array.ndim != axes:
        raise BadInput(f"{name} have shape {list(array.shape)}, not {form}", where=name)
    return array
