"""Layer records read back from ``layers.json``, every number within bounds."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt, StrictStr
from pydantic import ValidationError as Invalid

from fastwan.bundle import Bundle
from fastwan.engines.layers import MAX_ELEMENTS, MAX_RANK, LayerRecord, TensorRecord
from fastwan.errors import BadInput
from fastwan.manifest import LAYERS
from fastwan.strict_json import first_fault

_MAX_NODES = 4096
_MAX_TENSORS = 4096


def _few_enough(shape: list[int]) -> list[int]:
    if math.prod(size for size in shape if size > 0) > MAX_ELEMENTS:
        raise ValueError("Tensor has more elements than a GPU holds")
    return shape


_Text = Annotated[StrictStr, Field(max_length=4096)]
_Size = Annotated[StrictInt, Field(ge=-1, lt=1 << 31)]
_Shape = Annotated[list[_Size], Field(max_length=MAX_RANK), AfterValidator(_few_enough)]


class _Tensor(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: _Text
    dtype: _Text
    shape: _Shape

    def record(self) -> TensorRecord:
        return TensorRecord(self.name, self.dtype, tuple(self.shape))


_Tensors = Annotated[list[_Tensor], Field(max_length=_MAX_TENSORS)]


class _Layer(BaseModel):
    """Fields of `LayerRecord.to_json`; the last two are for readers and not used."""

    model_config = ConfigDict(extra="forbid")

    name: _Text
    type: _Text
    inputs: _Tensors
    constants: _Tensors
    outputs: _Tensors
    tactic: _Text
    nodes: Annotated[list[_Text], Field(max_length=_MAX_NODES)]
    profile: Annotated[StrictInt, Field(ge=0, lt=64)] = 0
    kind: _Text = ""
    precision: _Text = ""


def layer_from_json(raw: dict[str, object]) -> LayerRecord:
    """Inverse of `LayerRecord.to_json`.

    Raises:
        BadInput: a field is missing, unknown, of a wrong type or beyond its bounds.
    """
    try:
        read = _Layer.model_validate(raw)
    except Invalid as error:
        raise BadInput(
            f"a layer record is malformed: {first_fault(error)}",
            where=LAYERS,
            fix="build the bundle again",
        ) from None
    return LayerRecord(
        name=read.name,
        type=read.type,
        inputs=tuple(tensor.record() for tensor in read.inputs),
        constants=tuple(tensor.record() for tensor in read.constants),
        outputs=tuple(tensor.record() for tensor in read.outputs),
        tactic=read.tactic,
        nodes=tuple(read.nodes),
        profile=read.profile,
    )


def bundle_layers(bundle: Bundle) -> dict[str, tuple[LayerRecord, ...]]:
    """Layer records by engine.

    Raises:
        BadInput: as of `layer_from_json`, or records of a profile that the engine does not have.
        VerificationFailed: the file differs from its hash.
    """
    layers = {name: tuple(map(layer_from_json, records)) for name, records in bundle.layers.items()}
    for name, engine in bundle.manifest.engines.items():
        profiles = max((len(each) for each in engine.profiles.values()), default=1)
        if any(record.profile >= profiles for record in layers[name]):
            raise BadInput(f"records of {name!r} are of a profile that it lacks", where=LAYERS)
    return layers
