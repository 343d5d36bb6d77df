"""Records of a manifest: tensors, linears, engines and what the runtime launches between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fastwan.config import Component
from fastwan.manifest_fields import (
    Attribute,
    Bytes,
    FixedShape,
    RecipeName,
    Shape,
    Text,
    profile_fits,
    within,
)
from fastwan.manifest_sources import Record

Profile = tuple[FixedShape, FixedShape, FixedShape]
"""(min, opt, max) shape of an engine's input."""

Cadence = Literal["schedule", "prompt", "step", "latent"]
"""How often an engine runs: once a prompt, a denoising step or a latent frame; ``schedule`` is once
for each timestep of the sampler's schedule, when the bundle is loaded."""


class TensorSpec(Record):
    """A graph input or output. A dimension is a number or the name of a dynamic axis.

    Attributes:
        format: memory layout of an engine's tensor; ``hwc8`` is channels last, channels padded
            to a multiple of 8.
    """

    name: str
    dtype: str
    shape: Shape
    format: Literal["linear", "hwc8"] = "linear"


class Linear(Record):
    """A targeted linear of the graph, found again in an engine by its ONNX node.

    Attributes:
        name: name of the (possibly merged) linear, e.g. ``blocks.0.attn1.qkv``.
        node: name of the MatMul node that computes it.
        sources: checkpoint linears it holds, in the order of the output channels.
        format: recipe of its weight and activation.
    """

    name: str
    node: str
    sources: tuple[str, ...]
    format: RecipeName


class Engine(Record):
    """One engine of a bundle.

    Engines of the same `file` are one plan, which is opened once and runs with other tensors.

    Attributes:
        constants: weights it is given when it runs, initializers of the component's ONNX file.
        bindings: by tensor, what the plan calls it; empty where it has the tensors' own names.
        scratch_bytes: device memory its context needs while it runs.
        linears: targeted linears it covers.
        runs: how often it runs.
        profiles: for each input with a dynamic axis its (min, opt, max) shape in every
            optimization profile; all inputs have equally many.
    """

    file: str
    component: Component
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    constants: tuple[TensorSpec, ...] = ()
    bindings: dict[Text, Text] = Field(default_factory=dict)
    scratch_bytes: Bytes
    linears: tuple[Linear, ...] = ()
    runs: Cadence = "step"
    profiles: dict[str, Annotated[tuple[Profile, ...], Field(max_length=64)]] = Field(
        default_factory=dict
    )

    @model_validator(mode="after")
    def _check_profiles(self) -> Engine:
        shapes = {spec.name: spec.shape for spec in self.inputs}
        counts = {len(profiles) for profiles in self.profiles.values()}
        fits = all(
            profile_fits(profile, shapes.get(name))
            for name, profiles in self.profiles.items()
            for profile in profiles
        )
        if len(counts) > 1 or 0 in counts or not fits:
            raise ValueError("profiles do not fit the inputs")
        return self

    @model_validator(mode="after")
    def _check_bindings(self) -> Engine:
        names = [spec.name for spec in self.tensors]
        if len(set(names)) < len(names):
            raise ValueError("two tensors of an engine have one name")
        bound = set(self.bindings.values())
        if self.bindings and (set(self.bindings) != set(names) or len(bound) < len(names)):
            raise ValueError("bindings do not name each tensor of the engine once")
        owners = tuple(f"{linear.name}." for linear in self.linears)
        if others := [c.name for c in self.constants if not c.name.startswith(owners)]:
            raise ValueError(f"an engine is given {others[0]!r}, of no linear that it covers")
        return self

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Everything that it reads and writes, in the order inputs, constants, outputs."""
        return (*self.inputs, *self.constants, *self.outputs)

    @property
    def plan_tensors(self) -> dict[str, tuple[str, Shape, bool]]:
        """By the plan's own names: dtype, shape without leading ones, whether it is a weight."""
        return {
            self.bindings.get(spec.name, spec.name): (
                spec.dtype,
                _without_ones(spec.shape),
                spec in self.constants,
            )
            for spec in self.tensors
        }

    def profile_for(self, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
        """Index of the first profile that takes inputs of these shapes; None without one.

        Args:
            shapes: by input name; those of inputs without a dynamic axis are left alone.
        """
        if not self.profiles:
            return 0
        for index, profile in enumerate(zip(*self.profiles.values(), strict=True)):
            bounds = zip(self.profiles, profile, strict=True)
            if all(within(shapes[name], shape[0], shape[-1]) for name, shape in bounds):
                return index
        return None


def _without_ones(shape: Shape) -> Shape:
    return _without_ones(shape[1:]) if shape and shape[0] == 1 else shape


class RegionNode(Record):
    """A node that the runtime launches itself; names are those of engine outputs and weights."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[Text, Attribute]


class Region(Record):
    """Neighbouring nodes between two engines, which the backend cannot hold.

    Attributes:
        after: name of the engine that makes the last of its inputs.
        inputs: what it reads of engines and regions before it.
        constants: weights it reads, initializers of the component's ONNX file.
        outputs: what it hands to engines after it.
        temporaries: what one of its nodes hands to a later one and nobody else reads.
    """

    component: Component
    after: str
    nodes: tuple[RegionNode, ...]
    inputs: tuple[TensorSpec, ...]
    constants: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    temporaries: tuple[TensorSpec, ...] = ()

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Everything that its nodes read and write."""
        return (*self.inputs, *self.constants, *self.temporaries, *self.outputs)

    @model_validator(mode="after")
    def _check_nodes(self) -> Region:
        """Every value is made once, before it is read; every temporary is read."""
        names = [spec.name for spec in self.tensors]
        if len(set(names)) < len(names):
            raise ValueError("two tensors of a region have one name")
        known = {spec.name for spec in (*self.inputs, *self.constants)}
        read: set[str] = set()
        for node in self.nodes:
            if unknown := set(node.inputs) - known:
                raise ValueError(f"{node.op} reads {min(unknown)!r}, which nobody makes before it")
            read.update(node.inputs)
            for name in node.outputs:
                if name in known or name not in names:
                    raise ValueError(f"{node.op} writes {name!r}, which is not its to write")
                known.add(name)
        if missing := set(names) - known:
            raise ValueError(f"no node of the region makes {min(missing)!r}")
        if unused := {spec.name for spec in self.temporaries} - read:
            raise ValueError(f"no node of the region reads {min(unused)!r}")
        return self


class Fallback(Record):
    """An engine that computes what a node of a region computes, by the backend's own kernels.

    It serves every node of that kind with these shapes and attributes.

    Attributes:
        node: names are those of `tensors`.
        tensors: all that the node reads and writes, as the project's kernels take it.
        graph: file of the engine's ONNX graph, which needs no other file.
        engine: inputs and outputs have the names of `tensors`; what it does not need to read is
            left out.
    """

    node: RegionNode
    tensors: tuple[TensorSpec, ...]
    graph: str
    engine: Engine

    def with_scratch(self, scratch_bytes: int) -> Fallback:
        """The same with an engine that needs another scratch."""
        engine = self.engine.model_copy(update={"scratch_bytes": scratch_bytes})
        return self.model_copy(update={"engine": engine})

    @model_validator(mode="after")
    def _check_names(self) -> Fallback:
        """The engine reads and writes what the node does."""
        read = {spec.name for spec in self.engine.inputs} - set(self.node.inputs)
        if read:
            raise ValueError(f"the engine of {self.node.op} reads {min(read)!r}, the node does not")
        if {spec.name for spec in self.engine.outputs} != set(self.node.outputs):
            raise ValueError(f"the engine of {self.node.op} does not write what the node does")
        return self
