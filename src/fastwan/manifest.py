"""The contracts between the stages: the ONNX bundle's and the engine bundle's manifests.

`OnnxManifest` (``export.json``) is what export/ hands to engines/; `Manifest` (``manifest.json``)
is what engines/ hands to runtime/. `fastwan.manifest_reader` reads either strictly;
`fastwan.bundle` opens what they describe.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fastwan.config import Component, SamplerSpec
from fastwan.errors import BadInput
from fastwan.manifest_fields import (
    ActivationName,
    AttentionName,
    Attribute,
    BackendName,
    Bytes,
    Digest,
    FixedShape,
    FusionName,
    RecipeName,
    Scale,
    Seconds,
    Shape,
    TargetName,
    Text,
    WeightsName,
    WholeDecoder,
    WholeDiT,
    WholeShape,
    WholeTextEncoder,
    profile_fits,
    within,
)
from fastwan.manifest_sources import Adapter, HubSource, Record
from fastwan.tables import lookup

SCHEMA_VERSION = 4
"""Of ``manifest.json``."""
MANIFEST = "manifest.json"
ONNX_MANIFEST = "export.json"
LAYERS = "layers.json"

MAX_ENGINES = 4096
MAX_FILES = 1 << 16


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


class Graph(Record):
    """One ONNX file of a component, its data file, and what it computes.

    Attributes:
        file: path of the ``.onnx`` file in the bundle.
        data: external data files it reads, relative to the bundle.
        cpu_file: the same graph lowered to standard operators for ONNX Runtime.
    """

    file: str
    data: tuple[str, ...]
    cpu_file: str | None = None
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    linears: tuple[Linear, ...] = ()


class Model(Record):
    """What was exported.

    Attributes:
        recipe: of the transformer's linears.
        activation: how it scales activations, where it leaves a choice.
        activation_scales: by linear, from a calibration.
        decoder: None where it was not exported.
        text_encoder: likewise.
        own_sampler: what the checkpoint's scheduler makes of `default_sampler`; None where that
            plays as published.
        checkpoint: where on the hub its weights are from; None where they were given as files.
        adapters: LoRA files in the weights, in the order in which they were merged.
        notes: what was assumed of the checkpoint, and what of it was not read.
    """

    name: str
    recipe: RecipeName
    activation: ActivationName | None = None
    activation_scales: dict[str, Scale] = Field({}, max_length=1 << 14)
    shape: WholeShape
    dit: WholeDiT
    decoder: WholeDecoder | None
    text_encoder: WholeTextEncoder | None
    default_sampler: str
    own_sampler: SamplerSpec | None = None
    checkpoint: HubSource | None = None
    adapters: tuple[Adapter, ...] = Field((), max_length=64)
    notes: tuple[str, ...] = ()


class OnnxManifest(Record):
    """Contents of ``export.json`` in an ONNX bundle.

    Attributes:
        graphs: by graph name: ``dit``, ``time_tables``, ``text_kv``, ``decoder``,
            ``text_encoder``.
        tensor_digests: by checkpoint tensor, the SHA-256 of what the reference quantiser (not the
            one that wrote the file) makes of it; `verify` compares the file's bytes with these.
        extra_files: further files the runtime needs, e.g. the tokenizer and the embedding table.
    """

    schema_version: Literal[3] = 3
    tool_version: str
    model: Model
    graphs: dict[str, Graph]
    tensor_digests: dict[str, Digest] = Field(default_factory=dict)
    extra_files: tuple[str, ...] = ()


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


class FileRecord(Record):
    sha256: Digest
    bytes: Bytes


class BuildRecord(Record):
    """What the build took; not part of what identifies a bundle.

    Attributes:
        stages: seconds by stage.
        cached: engines that were taken from the cache.
    """

    seconds: Seconds
    peak_rss_bytes: Bytes
    stages: dict[str, Seconds] = Field(default_factory=dict)
    cached: tuple[str, ...] = ()


class Manifest(Record):
    """Contents of ``manifest.json`` in an engine bundle.

    Attributes:
        engines: by engine name, in the order in which they run.
        regions: by region name, what the runtime launches between engines.
        fallbacks: by engine name, what can be played in place of nodes of regions; none in a
            bundle that was built before there were any.
        attention: what the engines were made with.
        fusion: what of the graph between GEMMs was lifted into regions.
        weights: where those of a step's linears are.
        sampler: name of the one of `samplers` that plays unless another is asked for.
        samplers: those that the model was trained for.
        onnx: the ONNX bundle the engines were made of, kept under ``onnx/`` as the CPU reference.
        files: every other file of the bundle.
    """

    schema_version: Literal[4] = 4
    tool_version: str
    versions: dict[str, str]
    target: TargetName
    backend: BackendName
    attention: AttentionName
    fusion: FusionName
    weights: WeightsName = "inline"
    sampler: str
    samplers: tuple[SamplerSpec, ...] = Field(min_length=1, max_length=64)
    components: tuple[Component, ...] = Field(min_length=1)
    onnx: OnnxManifest
    engines: dict[str, Engine] = Field(max_length=MAX_ENGINES)
    regions: dict[str, Region] = Field(default_factory=dict, max_length=MAX_ENGINES)
    fallbacks: dict[str, Fallback] = Field(default_factory=dict, max_length=MAX_ENGINES)
    files: dict[str, FileRecord] = Field(max_length=MAX_FILES)
    build: BuildRecord

    @model_validator(mode="after")
    def _check_samplers(self) -> Manifest:
        names = [spec.name for spec in self.samplers]
        if len(set(names)) < len(names) or self.sampler not in names:
            raise ValueError(f"sampler {self.sampler!r} is not one of {names}")
        return self

    @model_validator(mode="after")
    def _check_fallbacks(self) -> Manifest:
        if both := self.engines.keys() & self.fallbacks.keys():
            raise ValueError(f"two engines have the name {min(both)!r}")
        return self

    @model_validator(mode="after")
    def _check_plans(self) -> Manifest:
        """Engines of one file are one plan."""
        first: dict[str, tuple[str, Engine]] = {}
        for name, engine in self.engines.items():
            other, known = first.setdefault(engine.file, (name, engine))
            if engine.plan_tensors != known.plan_tensors:
                raise ValueError(f"engines {other!r} and {name!r} share a plan and no shapes")
        return self

    @property
    def fallback_engines(self) -> dict[str, Engine]:
        """Engines of `fallbacks`, by name."""
        return {name: each.engine for name, each in self.fallbacks.items()}

    def engine_record(self, engine: Engine) -> FileRecord:
        """Hash and size of an engine's file.

        Raises:
            BadInput: the manifest does not list it.
        """
        try:
            return self.files[engine.file]
        except KeyError:
            raise BadInput("file is not listed in the manifest", where=engine.file) from None

    def sampler_spec(self, name: str | None = None) -> SamplerSpec:
        """The sampler of that name, by default the bundle's own.

        Raises:
            BadInput: the model was not trained for it; the message lists those there are.
        """
        return lookup(
            {spec.name: spec for spec in self.samplers}, self.sampler if name is None else name
        )
