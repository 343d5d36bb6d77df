"""What the builder consumes: one source for each engine of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from fastwan.bundle import Cadence, Linear, Profile

Component = Literal["dit", "decoder", "text_encoder"]
IoFormat = Literal["hwc8"]

_CADENCE: dict[str, Cadence] = {"dit": "step", "decoder": "latent", "text_encoder": "prompt"}
_APART: dict[str, Cadence] = {"time_tables": "schedule", "text_kv": "prompt"}


@dataclass(frozen=True)
class EngineSource:
    """A graph to build one engine from.

    Attributes:
        name: name of the engine, a plain file name without suffix; unique in its bundle.
        component: folder of the bundle that the engine belongs to.
        model: the graph, serialised or not; large weights are external data.
        base_dir: folder that the external data's locations are relative to.
        linears: targeted linears in the graph; the coverage gate holds the engine to them.
        profiles: for each input with a dynamic axis its (min, opt, max) shape in every
            optimization profile of the engine.
        io_formats: inputs and outputs that are not linear in memory; ``hwc8`` is channels last,
            channels padded to 8 (fp16 only).
        runs: how often the engine runs; by default once a step for ``dit``, once a latent frame
            for ``decoder``, once a prompt for ``text_encoder``; ``time_tables`` once a timestep
            of the schedule and ``text_kv`` once a prompt, by their names.
    """

    name: str
    component: Component
    model: bytes | ir.Model
    base_dir: Path
    linears: tuple[Linear, ...] = ()
    profiles: Mapping[str, tuple[Profile, ...]] | None = None
    io_formats: Mapping[str, IoFormat] | None = None
    runs: Cadence | None = field(default=None)

    @property
    def cadence(self) -> Cadence:
        """`runs`, or what follows from component and name."""
        if self.runs is not None:
            return self.runs
        return _APART.get(self.name, _CADENCE[self.component])

    def serialized(self) -> bytes:
        """The graph as protobuf bytes; external data stays where it is."""
        if isinstance(self.model, bytes):
            return self.model
        return bytes(ir.to_proto(self.model).SerializeToString(deterministic=True))
