"""Arguments of a pipeline call: checked, and turned into arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastwan.config import VideoShape
from fastwan.errors import BadInput
from fastwan.runtime.model.executor import Array
from fastwan.runtime.model.schedule import Schedule
from fastwan.runtime.model.text import pad_rows
from fastwan.runtime.outputs import latents_like, to_numpy
from fastwan.runtime.request import Request

if TYPE_CHECKING:
    import torch


def check_shape(built: VideoShape, **requested: int | None) -> None:
    """Refuse a height, width or num_frames that the engines were not built for.

    Raises:
        BadInput: naming the argument.
    """
    for name, value in requested.items():
        made = getattr(built, name)
        if value not in (None, made):
            raise BadInput(
                f"{name} {value} was asked for, the bundle makes {made}",
                where=name,
                fix=f"build one with --{name.replace('_', '-')} {value}",
            )


def padded_embeds(prompt_embeds: torch.Tensor | Array, shape: tuple[int, ...]) -> Array:
    """Given embeddings with zero rows behind them, as the model takes them.

    Raises:
        BadInput: they cannot become `shape`, [1, text_length, text_dim].
    """
    padded = pad_rows(to_numpy(prompt_embeds), shape[1])
    if padded.shape != shape:
        raise BadInput(
            f"prompt embeddings have {padded.shape[2]} channels, the model wants {shape[2]}",
            where="prompt_embeds",
        )
    return padded


def draw_noises(shape: tuple[int, ...], schedule: Schedule, request: Request) -> list[Array]:
    """Initial latents, drawn or as given, and the noise of every step that takes some, fp32.

    Raises:
        BadInput: a seed, a generator or latents that cannot be used.
    """
    from fastwan.runtime.model.noise import draw, generator_for

    generator = generator_for(request.generator, request.seed)
    noises: list[Array] = [*draw(shape, schedule, generator)]
    if request.latents is not None:
        noises[0] = latents_like(request.latents, shape)
    return noises


def replacement(returned: dict[str, Any] | None, state: Array) -> Array | None:
    """Latents that a step's callback returned instead of `state`; None where it left them.

    Raises:
        BadInput: of another shape.
    """
    if not returned or "latents" not in returned:
        return None
    return latents_like(returned["latents"], state.shape)
