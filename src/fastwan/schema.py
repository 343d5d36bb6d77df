"""What commands print with ``--json``: the base of their models, and how figures are labelled.

Every command has one model, and every model a JSON schema that is published in ``docs/schema/``
(`fastwan.quality.schemas` writes it).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, computed_field, model_validator

from fastwan.bundle import Bundle
from fastwan.config import VideoShape
from fastwan.strict_json import tuples

Label = Literal["measured", "emulated", "predicted"]
"""How a figure was got: counted, timed or read from a file; computed by the CPU reference in place
of the GPU; derived from bytes, operations and a table of rates."""

T = TypeVar("T")
Measured = Annotated[T, Field(json_schema_extra={"label": "measured"})]
"""A figure that was counted, timed or read from a file, or several in one object."""
Emulated = Annotated[T, Field(json_schema_extra={"label": "emulated"})]
"""A figure of what a Blackwell GPU computes, got by other instructions."""
Predicted = Annotated[T, Field(json_schema_extra={"label": "predicted"})]
"""A figure that a model gives, or several in one object."""

Count = Annotated[int, Field(ge=0)]
"""A number of things, or of bytes."""
Duration = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A time that was measured, in the unit that the name of its field says."""


class Record(BaseModel):
    """A part of a report: immutable, without unknown fields.

    Its own JSON can be read back; what the model computes is computed anew, whatever stands there.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_serialization_defaults_required=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _leave_out_computed(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        kept = {k: value for k, value in fields.items() if k not in cls.model_computed_fields}
        return tuples(kept)


class Report(Record):
    """What a command prints.

    A subclass has ``kind``, the command's name, and ``schema_version``, which grows when a reader
    of the version before would fail or be misled.
    """

    def to_json(self) -> str:
        """One JSON object, ASCII, without a figure that is not finite."""
        return json.dumps(self.model_dump(mode="json"), indent=1, allow_nan=False)


class FigureReport(Report):
    """A report whose figures are labelled."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def labels(self) -> dict[str, Label]:
        """How each figure was got, by place: names joined by dots, ``*`` for any key or index.

        The label of an object is that of everything in it; what has none was given by the caller.
        """
        return dict(labels_of(type(self)))


def labels_of(model: type[Record]) -> Iterator[tuple[str, Label]]:
    """Labels of a model's figures by place, see `FigureReport.labels`."""
    for name, field in model.model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and "label" in extra:
            yield name, cast(Label, extra["label"])
        else:
            for place, inner in _records_in(field.annotation, name):
                yield from ((f"{place}.{rest}", label) for rest, label in labels_of(inner))


def _records_in(annotation: Any, place: str) -> Iterator[tuple[str, type[Record]]]:
    """Records that a type holds, and where."""
    if isinstance(annotation, type) and issubclass(annotation, Record):
        yield place, annotation
        return
    holds_many = get_origin(annotation) in (dict, tuple)
    for argument in get_args(annotation):
        yield from _records_in(argument, f"{place}.*" if holds_many else place)


class BundleFacts(Record):
    """Which bundle a report is of, and what its figures depend on."""

    path: str
    model: str
    recipe: str
    """How the linears of the transformer are quantised."""
    shape: VideoShape
    target: str
    """GPU that the engines are for."""
    backend: str
    attention: str
    fusion: str
    """What the project's own kernels compute between GEMMs."""
    weights: str
    """Where the weights of a step's linears are: in the engines, or given to them."""
    sampler: str
    """The bundle's own; a command may have been told to use another."""
    versions: dict[str, str]
    """Of this tool and of the backend that built the engines."""

    @classmethod
    def of(cls, bundle: Bundle) -> BundleFacts:
        """Facts of an opened bundle."""
        manifest = bundle.manifest
        return cls(
            path=str(bundle.root),
            model=manifest.onnx.model.name,
            recipe=manifest.onnx.model.recipe,
            shape=manifest.onnx.model.shape,
            target=manifest.target,
            backend=manifest.backend,
            attention=manifest.attention,
            fusion=manifest.fusion,
            weights=manifest.weights,
            sampler=manifest.sampler,
            versions={"fastwan-export": manifest.tool_version, **manifest.versions},
        )
