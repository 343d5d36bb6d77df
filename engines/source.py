"""What the builder consumes: one source for each engine of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastwan.config import Component
from fastwan.manifest import Cadence, Linear, Profile

IoFormat = Literal["hwc8"]


@dataclass(frozen=True)
class EngineSource:
    """A graph to build one engine from.

    Attributes:
        name: name of the engine, a plain file name without suffix; unique in its bundle.
        component: folder of the bundle that the engine belongs to.
        model: the graph, serialised; large weights are external data.
        base_dir: folder that the external data's locations are relative to.
        cadence: how often the engine runs.
        linears: targeted linears in the graph; the coverage gate holds the engine to them.
        profiles: for each input with a dynamic axis its (min, opt, max) shape in every
            optimization profile of the engine.
        io_formats: inputs and outputs that are not linear in memory; ``hwc8`` is channels last,
            channels padded to 8 (fp16 only).
    """

    name: str
    component: Component
    model: bytes
    base_dir: Path
    cadence: Cadence
    linears: tuple[Linear, ...] = ()
    profiles: Mapping[str, tuple[Profile, ...]] | None = None
    io_formats: Mapping[str, IoFormat] | None = None
