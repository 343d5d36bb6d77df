"""Records of a manifest: what was exported, as ``export.json`` of an ONNX bundle has it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fastwan.config import SamplerSpec
from fastwan.manifest_fields import (
    ActivationName,
    Digest,
    RecipeName,
    Scale,
    WholeDecoder,
    WholeDiT,
    WholeShape,
    WholeTextEncoder,
)
from fastwan.manifest_records import Linear, TensorSpec
from fastwan.manifest_sources import Adapter, HubSource, Record


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
