"""Shapes of videos as people write them, and the choice of one that a bundle has."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fastwan.config import VideoShape
from fastwan.errors import BadInput

_SHAPE = re.compile(r"([0-9]{1,6})x([0-9]{1,6})x([0-9]{1,6})")


def shape_text(shape: VideoShape) -> str:
    """A shape as WIDTHxHEIGHTxFRAMES, e.g. ``832x480x81``."""
    return f"{shape.width}x{shape.height}x{shape.num_frames}"


def parse_shape(text: str) -> VideoShape:
    """The shape that `shape_text` writes.

    Raises:
        BadInput: not of that form, or no shape of a video.
    """
    match = _SHAPE.fullmatch(text.strip())
    if match is None:
        raise BadInput(
            f"{text!r:.40} is no WIDTHxHEIGHTxFRAMES", where="--shape", fix="e.g. 832x480x81"
        )
    width, height, frames = map(int, match.groups())
    try:
        return VideoShape(height=height, width=width, num_frames=frames)
    except BadInput as error:  # of one of the three, for which there may be no option
        raise BadInput(error.what, where=f"--shape {text}", fix=error.fix) from None


def parse_shapes(texts: Sequence[str]) -> tuple[VideoShape, ...]:
    """Shapes of an option that may be repeated.

    Raises:
        BadInput: one is given twice, or see `parse_shape`.
    """
    shapes = tuple(map(parse_shape, texts))
    for index, shape in enumerate(shapes):
        if shape in shapes[:index]:
            raise BadInput(f"{shape_text(shape)} is given twice", where="--shape")
    return shapes
