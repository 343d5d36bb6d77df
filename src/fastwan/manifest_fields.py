"""Types of a manifest's fields: names that a table has to have, and whole configurations."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from functools import partial
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from fastwan.config import (
    ATTENTIONS,
    BACKENDS,
    RECIPES,
    TARGETS,
    DecoderConfig,
    DiTConfig,
    TextEncoderConfig,
    VideoShape,
    known,
)
from fastwan.strict_json import tuples


def _one_of(names: Collection[str], kind: str) -> AfterValidator:
    """Raises `BadInput`, which passes through pydantic as it is."""
    return AfterValidator(partial(known, names, kind=kind))


RecipeName = Annotated[str, _one_of(RECIPES, "recipe")]
AttentionName = Annotated[str, _one_of(ATTENTIONS, "attention")]
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
