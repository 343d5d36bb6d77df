"""What the builder consumes: one source for each engine of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastwan.config import Component
from fastwan.manifest import Cadence, Linear, Profile, TensorSpec

IoFormat = Literal["hwc8"]


@dataclass(frozen=True)
class SharedPlan:
    """What engines have in common that differ in their weights alone.

    Attributes:
        name: of the plan's file, without suffix.
        model: the graph, serialised; it holds no weights.
        inputs: of the engine, by its own names, as `constants` and `outputs` are.
        constants: weights that it is given.
        outputs: what it writes.
        bindings: by tensor, what the plan calls it.
        nodes: by node of `model`, the node of the engine's own graph.
    """

    name: str
    model: bytes
    inputs: tuple[TensorSpec, ...]
    constants: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    bindings: Mapping[str, str]
    nodes: Mapping[str, str]


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
        shared: what is built in place of `model`, once for all sources that have it; None where the
            engine holds its weights.
    """

    name: str
    component: Component
    model: bytes
    base_dir: Path
    cadence: Cadence
    linears: tuple[Linear, ...] = ()
    profiles: Mapping[str, tuple[Profile, ...]] | None = None
    io_formats: Mapping[str, IoFormat] | None = None
    shared: SharedPlan | None = None
