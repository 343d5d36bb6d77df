"""The contracts between the stages: the ONNX bundle's and the engine bundle's manifests.

`OnnxManifest` (``export.json``) is what export/ hands to engines/; `Manifest` (``manifest.json``)
is what engines/ hands to runtime/. `fastwan.manifest_reader` reads either strictly;
`fastwan.bundle` opens what they describe.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from fastwan.bundle_folder import MANIFEST
from fastwan.config import Component, SamplerSpec, VideoShape
from fastwan.errors import BadInput
from fastwan.manifest_exported import Graph, Model, OnnxManifest
from fastwan.manifest_fields import (
    AttentionName,
    BackendName,
    Bytes,
    Digest,
    FusionName,
    Seconds,
    TargetName,
    WeightsName,
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
from fastwan.manifest_sources import Record
from fastwan.shapes import shape_text
from fastwan.tables import lookup

__all__ = [
    "LAYERS",
    "MANIFEST",
    "MAX_ENGINES",
    "MAX_FILES",
    "MAX_SHAPES",
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
    "ShapeParts",
    "TensorSpec",
]

SCHEMA_VERSION = 4
"""Of ``manifest.json``."""
ONNX_MANIFEST = "export.json"
LAYERS = "layers.json"

MAX_ENGINES = 4096
MAX_FILES = 1 << 16
MAX_SHAPES = 32


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


def _check_engines(engines: Mapping[str, Engine], fallbacks: Mapping[str, Fallback]) -> None:
    """Hold names apart, and engines of one file to be one plan.

    Raises:
        ValueError: they are not.
    """
    if both := engines.keys() & fallbacks.keys():
        raise ValueError(f"two engines have the name {min(both)!r}")
    first: dict[str, tuple[str, Engine]] = {}
    for name, engine in engines.items():
        other, known = first.setdefault(engine.file, (name, engine))
        if engine.plan_tensors != known.plan_tensors:
            raise ValueError(f"engines {other!r} and {name!r} share a plan and no shapes")


class ShapeParts(Record):
    """What of a bundle follows a shape.

    Attributes:
        onnx: of the same model; its files may be those of another shape.
        layers: file of the engines' layer records.
        engines: as of `Manifest`, like `regions` and `fallbacks`.
    """

    onnx: OnnxManifest
    layers: str = LAYERS
    engines: dict[str, Engine] = Field(max_length=MAX_ENGINES)
    regions: dict[str, Region] = Field(default_factory=dict, max_length=MAX_ENGINES)
    fallbacks: dict[str, Fallback] = Field(default_factory=dict, max_length=MAX_ENGINES)

    @property
    def shape(self) -> VideoShape:
        """Of the video that they make."""
        return self.onnx.model.shape

    @property
    def files(self) -> set[str]:
        """Files of a bundle that they name."""
        names = {self.layers, *(engine.file for engine in self.engines.values())}
        for each in self.fallbacks.values():
            names |= {each.engine.file, each.graph}
        names |= {f"onnx/{name}" for name in self.onnx.extra_files}
        for graph in self.onnx.graphs.values():
            names |= {f"onnx/{name}" for name in (graph.file, *graph.data, graph.cpu_file) if name}
        return names

    @model_validator(mode="after")
    def _check_engines(self) -> Self:
        _check_engines(self.engines, self.fallbacks)
        return self


_PARTS = tuple(ShapeParts.model_fields)
_OF_SEVERAL = ("layers", "shapes")
"""Fields that a manifest of one shape does not write."""


class Manifest(Record):
    """Contents of ``manifest.json`` in an engine bundle.

    Where a bundle has several shapes, the fields of `ShapeParts` are those of the first.

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
        files: every other file of the bundle, of all shapes.
        layers: file of the engines' layer records.
        shapes: the further shapes that videos can have.
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
    layers: str = LAYERS
    shapes: tuple[ShapeParts, ...] = Field(default=(), max_length=MAX_SHAPES - 1)

    @model_validator(mode="after")
    def _check_samplers(self) -> Manifest:
        names = [spec.name for spec in self.samplers]
        if len(set(names)) < len(names) or self.sampler not in names:
            raise ValueError(f"sampler {self.sampler!r} is not one of {names}")
        return self

    @model_validator(mode="after")
    def _check_engines(self) -> Manifest:
        _check_engines(self.engines, self.fallbacks)
        return self

    @model_validator(mode="after")
    def _check_shapes(self) -> Manifest:
        own = self.parts[0]
        first = own.onnx.model
        known = {own.shape}
        for each in self.shapes:
            if each.onnx.model.model_copy(update={"shape": first.shape}) != first:
                raise ValueError(f"{shape_text(each.shape)} is of another model")
            if each.shape in known:
                raise ValueError(f"two shapes are {shape_text(each.shape)}")
            known.add(each.shape)
        return self

    @model_serializer(mode="wrap")
    def _leave_out(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        unset = {name for name in _OF_SEVERAL if getattr(self, name) == _DEFAULTS[name]}
        return {name: value for name, value in fields.items() if name not in unset}

    @property
    def parts(self) -> tuple[ShapeParts, ...]:
        """What follows the shape, of every shape, the first one first."""
        own = ShapeParts.model_construct(**{name: getattr(self, name) for name in _PARTS})
        return (own, *self.shapes)

    @property
    def video_shapes(self) -> tuple[VideoShape, ...]:
        """Shapes of the videos that it makes, the first one first."""
        return (self.onnx.model.shape, *(each.shape for each in self.shapes))

    def at(self, shape: VideoShape) -> Manifest:
        """The same manifest with one of its shapes first.

        Raises:
            BadInput: the bundle does not have it; the message lists those there are.
        """
        parts = {shape_text(each.shape): each for each in self.parts}
        wanted = lookup(parts, shape_text(shape), "shape")
        others = tuple(each for each in parts.values() if each is not wanted)
        update = {name: getattr(wanted, name) for name in _PARTS}
        return self.model_copy(update={**update, "shapes": others})

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


_DEFAULTS = {name: Manifest.model_fields[name].default for name in _OF_SEVERAL}
