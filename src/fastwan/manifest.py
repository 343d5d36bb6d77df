"""The contracts between the stages: the ONNX bundle's and the engine bundle's manifests.

`OnnxManifest` (``export.json``) is what export/ hands to engines/; `Manifest` (``manifest.json``)
is what engines/ hands to runtime/. `fastwan.manifest_reader` reads either strictly;
`fastwan.bundle` opens what they describe.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fastwan.config import Component, SamplerSpec
from fastwan.errors import BadInput
from fastwan.manifest_fields import (
    ActivationName,
    AttentionName,
    BackendName,
    Bytes,
    Digest,
    FusionName,
    RecipeName,
    Scale,
    Seconds,
    TargetName,
    WeightsName,
    WholeDecoder,
    WholeDiT,
    WholeShape,
    WholeTextEncoder,
)
from fastwan.manifest_records import (
    Cadence,
    Engine,
    Fallback,
    Linear,
    Profile,
    Region,
    RegionNode,
    TensorSpec,
)
from fastwan.manifest_sources import Adapter, HubSource, Record
from fastwan.tables import lookup

__all__ = [
    "LAYERS",
    "MANIFEST",
    "MAX_ENGINES",
    "MAX_FILES",
    "ONNX_MANIFEST",
    "SCHEMA_VERSION",
    "BuildRecord",
    "Cadence",
    "Engine",
    "Fallback",
    "FileRecord",
    "Graph",
    "Linear",
    "Manifest",
    "Model",
    "OnnxManifest",
    "Profile",
    "Region",
    "RegionNode",
    "TensorSpec",
]

SCHEMA_VERSION = 4
"""Of ``manifest.json``."""
MANIFEST = "manifest.json"
ONNX_MANIFEST = "export.json"
LAYERS = "layers.json"

MAX_ENGINES = 4096
MAX_FILES = 1 << 16


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
