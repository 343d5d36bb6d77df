"""Arguments of a video: checked, and turned into arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fastwan.config import VideoShape
from fastwan.errors import BadInput, shown
from fastwan.runtime.model.checks import FLOATS, integer, is_finite
from fastwan.runtime.model.executor import Array
from fastwan.runtime.model.given import is_tensor
from fastwan.runtime.model.noise import Normals, draw, generator_for
from fastwan.runtime.model.schedule import Schedule
from fastwan.runtime.model.text import pad_rows
from fastwan.runtime.request import Request
from fastwan.shapes import shape_text


def check_shape(built: VideoShape, **requested: object) -> None:
    """Refuse a height, width or num_frames that the engines were not built for.

    Raises:
        BadInput: naming the argument.
    """
    for name, value in requested.items():
        made = getattr(built, name)
        if value is not None and integer(value, name) != made:
            raise BadInput(
                f"{name} {value} was asked for, the bundle makes {made}",
                where=name,
                fix=f"build one with --{name.replace('_', '-')} {value}",
            )


def chosen_shape(
    shapes: Sequence[VideoShape], *, height: object, width: object, num_frames: object
) -> VideoShape:
    """The first of a bundle's shapes that has the height, width and frames that were asked for.

    Args:
        shapes: at least one.
        height, width, num_frames: None takes any.

    Raises:
        BadInput: none has; of several, the message lists them.
    """
    requested = {"height": height, "width": width, "num_frames": num_frames}
    if len(shapes) == 1:
        check_shape(shapes[0], **requested)
        return shapes[0]
    wanted = {name: integer(v, name) for name, v in requested.items() if v is not None}
    for shape in shapes:
        if all(getattr(shape, name) == value for name, value in wanted.items()):
            return shape
    asked = ", ".join(f"{name} {value}" for name, value in wanted.items())
    raise BadInput(
        f"{asked} was asked for, the bundle makes {', '.join(map(shape_text, shapes))}",
        where=", ".join(wanted),
        fix="build one with that --shape too",
    )


def check_text_length(built: int, requested: object) -> None:
    """Refuse to read another number of tokens than the engines were built for.

    Raises:
        BadInput: another number.
    """
    if integer(requested, "max_sequence_length") != built:
        raise BadInput(
            f"max_sequence_length {requested} was asked for, the bundle reads {built} tokens",
            where="max_sequence_length",
            fix="leave it out",
        )


def to_floats(values: object, name: str) -> Array:
    """A given tensor or array of floats on the CPU, fp32.

    bf16 and fp16 stay as they are in fp32; fp64 is rounded.

    Raises:
        BadInput: another type, or NaN, Inf or a number beyond bfloat16 in it.
    """
    array: Array
    if is_tensor(values):
        values = values.detach().cpu()
        # numpy has no bfloat16 of its own.
        array = values.float().numpy() if values.is_floating_point() else values.numpy()
    elif isinstance(values, np.ndarray):
        array = values
    else:
        raise BadInput(f"{shown(values)} is no tensor or array", where=name)
    if array.dtype.name not in FLOATS:
        raise BadInput(f"{name} of dtype {array.dtype}, not of floats", where=name)
    if not is_finite(array):
        raise BadInput(f"NaN, Inf or a number beyond bfloat16 in {name}", where=name)
    return array.astype(np.float32, copy=False)


def padded_embeds(prompt_embeds: object, shape: tuple[int, ...]) -> Array:
    """Given embeddings with zero rows behind them, fp32.

    Raises:
        BadInput: they cannot become `shape`, [1, text_length, text_dim], or are not finite.
    """
    padded = pad_rows(to_floats(prompt_embeds, "prompt_embeds"), shape[1])
    if padded.shape != shape:
        raise BadInput(
            f"prompt embeddings have {padded.shape[2]} channels, the model wants {shape[2]}",
            where="prompt_embeds",
        )
    return padded


def latents_like(latents: object, shape: tuple[int, ...], name: str = "latents") -> Array:
    """`latents` as a contiguous fp32 array.

    Raises:
        BadInput: not of `shape`, or not finite.
    """
    array = to_floats(latents, name)
    if array.shape != shape:
        raise BadInput(
            f"{name} have shape {list(array.shape)}, the bundle wants {list(shape)}", where=name
        )
    return np.ascontiguousarray(array)


def draw_noises(
    shape: tuple[int, ...],
    schedule: Schedule,
    request: Request,
    normals: Callable[[int], Normals],
) -> list[Array]:
    """Initial latents, drawn or as given, and the noise of every step that takes some, fp32.

    Args:
        normals: what draws the numbers of a seed.

    Raises:
        BadInput: latents that cannot be used.
    """
    generator = generator_for(request.generator, request.seed, normals)
    noises: list[Array] = [*draw(shape, schedule, generator)]
    if request.latents is not None:
        noises[0] = latents_like(request.latents, shape)
    return noises
