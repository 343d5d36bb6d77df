"""Values that lifted nodes read and the exported graph does not hold: what they follow from.

A pass of ``export/passes/`` that lifts a pattern gives such values their names, and an engine
computes them. Who runs the exported graph in an engine's place finds here what to compute.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

TEXT = "encoder_hidden_states"
"""The prompt's embeddings, an input of the transformer."""
KEY_BIAS, KEY_TILES = "text.key_bias", "text.key_tiles"
MODULATION = "modulation/"
"""Begins the names of what one timestep decides for all rows."""
_VECTOR = re.compile(rf"{MODULATION}(.+)/vector")


@dataclass(frozen=True)
class Derived:
    """A value that follows from one of the exported graph.

    Attributes:
        source: name of that value.
        compute: the value, of the source.
    """

    source: str
    compute: Callable[[Tensor], Tensor]


def vector_name(value: str) -> str:
    """Name of the vector [C] that holds a value [.., C] of one row."""
    return f"{MODULATION}{value}/vector"


def derived(name: str) -> Derived | None:
    """How a value follows from the exported graph; None for one that the graph holds."""
    if vector := _VECTOR.fullmatch(name):
        return Derived(vector[1], lambda row: row.reshape(-1))
    return _OF_TEXT.get(name)


def _key_bias(text: Tensor) -> Tensor:
    from fastwan.plugins.glue_reference import few_keys

    return few_keys(text)[0]


def _key_tiles(text: Tensor) -> Tensor:
    from fastwan.plugins.glue_reference import few_keys

    return few_keys(text)[1]


_OF_TEXT = {KEY_BIAS: Derived(TEXT, _key_bias), KEY_TILES: Derived(TEXT, _key_tiles)}
