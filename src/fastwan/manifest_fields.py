"""Types of a manifest's fields: names that a table has to have, and whole configurations."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import fields
from functools import partial
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from fastwan.config import (
    ACTIVATIONS,
    ATTENTIONS,
    BACKENDS,
    FUSIONS,
    RECIPES,
    TARGETS,
    WEIGHTS,
    DecoderConfig,
    DiTConfig,
    TextEncoderConfig,
    VideoShape,
)
from fastwan.strict_json import tuples
from fastwan.tables import known

MAX_ELEMENTS = 1 << 42
"""Largest tensor: more than any GPU holds at a bit an element."""

Text = Annotated[str, Field(max_length=4096)]
Size = Annotated[int, Field(ge=1, lt=1 << 31)]
"""Length of an axis."""
Bytes = Annotated[int, Field(ge=0, le=1 << 44)]
Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
Scale = Annotated[float, Field(ge=2.0**-126, le=3.4e38, allow_inf_nan=False)]
"""A factor of fp32."""
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""A SHA-256."""
Attribute = (
    Annotated[int, Field(ge=-(1 << 31), lt=1 << 31)]
    | Annotated[float, Field(ge=-3.4e38, le=3.4e38, allow_inf_nan=False)]
    | Text
)
"""Of a node; each kind of region has bounds of its own besides."""


def _holdable(shape: tuple[int | str, ...]) -> tuple[int | str, ...]:
    if math.prod(size for size in shape if isinstance(size, int)) > MAX_ELEMENTS:
        raise ValueError("Tensor has more elements than a GPU holds")
    return shape


Shape = Annotated[tuple[Size | Text, ...], Field(max_length=16), AfterValidator(_holdable)]
FixedShape = Annotated[tuple[Size, ...], Field(max_length=16), AfterValidator(_holdable)]


def _one_of(names: Collection[str], kind: str) -> AfterValidator:
    """Raises `BadInput`, which passes through pydantic as it is."""
    return AfterValidator(partial(known, names, kind=kind))


ActivationName = Annotated[str, _one_of(ACTIVATIONS, "activation scale")]
RecipeName = Annotated[str, _one_of(RECIPES, "recipe")]
AttentionName = Annotated[str, _one_of(ATTENTIONS, "attention")]
FusionName = Annotated[str, _one_of(FUSIONS, "fusion")]
WeightsName = Annotated[str, _one_of(WEIGHTS, "place of weights")]
BackendName = Annotated[str, _one_of(BACKENDS, "backend")]
TargetName = Annotated[str, _one_of(TARGETS, "target")]


def _whole(kind: type[Any]) -> BeforeValidator:
    """A configuration is read with every field written out; none is left to its default."""

    def check(value: object) -> object:
        wanted = {field.name for field in fields(kind)}
        if isinstance(value, dict) and (missing := wanted - value.keys()):
            raise ValueError(f"{min(missing)} is missing")
        return tuples(value)

    return BeforeValidator(check)


WholeShape = Annotated[VideoShape, _whole(VideoShape)]
WholeDiT = Annotated[DiTConfig, _whole(DiTConfig)]
WholeDecoder = Annotated[DecoderConfig, _whole(DecoderConfig)]
WholeTextEncoder = Annotated[TextEncoderConfig, _whole(TextEncoderConfig)]


def within(shape: tuple[int, ...], least: tuple[int, ...], most: tuple[int, ...]) -> bool:
    """Whether a shape has as many axes as two others, and each of a size between theirs."""
    return len(shape) == len(most) and all(
        low <= size <= high for low, size, high in zip(least, shape, most, strict=True)
    )


def profile_fits(profile: tuple[tuple[int, ...], ...], shape: Shape | None) -> bool:
    """Whether a profile has a size of every axis, in order, and that of one that is fixed."""
    if shape is None or any(len(each) != len(shape) for each in profile):
        return False
    return all(
        low <= usual <= high and (isinstance(size, str) or low == high == size)
        for size, low, usual, high in zip(shape, *profile, strict=True)
    )
