"""The bundle under test: its configurations, graphs and weights, parsed only after checks."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir
import torch
from torch import Tensor

from fastwan.bundle import Bundle
from fastwan.config import COMPONENTS, MODELS, DecoderConfig, TextEncoderConfig, VideoShape
from fastwan.errors import BadInput
from fastwan.export.attentions import Attention, find_attention
from fastwan.export.dit_graph import build_dit_graph, targeted_linears
from fastwan.export.dit_onnx import CPU_REFERENCE_TOKENS
from fastwan.export.onnx_io import torch_tensor
from fastwan.export.recipes import BF16, Recipe, find_recipe
from fastwan.export.weights import constant_tensors
from fastwan.hub.links import hub_cache_of
from fastwan.manifest import Graph, Linear
from fastwan.onnx_guard import all_tensors, checked_model, follow_links
from fastwan.quality.verify.executor import LoweredDiT
from fastwan.shapes import shape_text
from fastwan.tables import lookup

if TYPE_CHECKING:
    from fastwan.export.checkpoint.reader import Checkpoint

SMALL_SHAPE = VideoShape(height=96, width=160, num_frames=9)
"""Where bundles are verified whose own video is too long for the CPU reference."""


class Subject:
    """What the checks of a bundle share. Nothing is read before its hash was checked.

    Args:
        bundle: an opened bundle.
        checkpoint: what the bundle claims to be made of, or None to trust the manifest's digests.

    Attributes:
        shape: video shape the bundle was built for.
        recipe: of the transformer's linears.
        check_shape: shape at which graphs are run: `shape`, or `SMALL_SHAPE` for the graph that
            the exporter makes of the same configuration and the bundle's weights.

    Raises:
        BadInput: nothing implements the recipe that the manifest names.
    """

    def __init__(self, bundle: Bundle, checkpoint: Checkpoint | None = None) -> None:
        model = bundle.manifest.onnx.model
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.graphs = bundle.manifest.onnx.graphs
        self.checkpoint = checkpoint
        self.recipe = find_recipe(model.recipe, model.activation, model.activation_scales)
        self.dit_config = model.dit
        self.shape = model.shape
        small = self.shape.num_tokens <= CPU_REFERENCE_TOKENS
        self.check_shape = self.shape if small else SMALL_SHAPE
        self._protos: dict[str, onnx.ModelProto] = {}

    @property
    def present(self) -> frozenset[str]:
        """Components that the manifest names, or has a graph of: all of them are held."""
        return frozenset(self.manifest.components) | (self.graphs.keys() & set(COMPONENTS))

    def graph(self, name: str) -> Graph:
        """Record of a graph.

        Raises:
            BadInput: the manifest has none, though it names the component.
        """
        if name not in self.graphs:
            raise BadInput(f"no graph of the component {name}", where="manifest.json")
        return self.graphs[name]

    @cached_property
    def attention(self) -> Attention:
        """What the model was made for; engines of another attention do not change that."""
        return find_attention(lookup(MODELS, self.manifest.onnx.model.name, "model").attention)

    @cached_property
    def text_recipe(self) -> Recipe:
        """Recipe of the text encoder's linears, as its graph's record says.

        Without a record it is none: the check of the component itself says that it is missing.
        """
        record = self.graphs.get("text_encoder")
        linears = () if record is None else record.linears
        return find_recipe(linears[0].format) if linears else BF16()

    @property
    def at(self) -> str:
        """The shape of the graph checks in words."""
        shape = self.check_shape
        text = f"{shape_text(shape)}, {shape.num_tokens} tokens"
        return text if shape == self.shape else f"{text}, the bundle's weights in a small graph"

    @property
    def decoder_config(self) -> DecoderConfig:
        """Shape of the decoder.

        Raises:
            BadInput: the manifest has none.
        """
        config = self.manifest.onnx.model.decoder
        if config is None:
            raise BadInput("no configuration of the decoder", where="manifest.json")
        return config

    @property
    def text_config(self) -> TextEncoderConfig:
        """Shape of the text encoder.

        Raises:
            BadInput: the manifest has none.
        """
        config = self.manifest.onnx.model.text_encoder
        if config is None:
            raise BadInput("no configuration of the text encoder", where="manifest.json")
        return config

    @cached_property
    def expected_linears(self) -> tuple[Linear, ...]:
        """Targeted linears of the transformer as they follow from the configuration alone."""
        return targeted_linears(self.dit_config, self.recipe)

    @property
    def data_folder(self) -> Path:
        """What the locations of external data in `proto` are relative to."""
        folder = self.bundle.folder / "onnx"
        return hub_cache_of(folder) or folder

    def proto(self, file: str) -> onnx.ModelProto:
        """An ONNX file of the bundle; it and all data files it reads are listed and hashed.

        Raises:
            BadInput, VerificationFailed: a file is not what the manifest says, or unsafe to parse.
        """
        if file not in self._protos:
            content = self.bundle.read(f"onnx/{file}")
            folder = self.bundle.folder / "onnx"
            listed = {
                name.removeprefix("onnx/")
                for name in self.manifest.files
                if name.startswith("onnx/")
            }
            model = checked_model(content, folder, file, listed)
            for tensor in all_tensors(model):
                for entry in tensor.external_data:
                    if entry.key == "location":
                        self.bundle.file(f"onnx/{entry.value}")
            follow_links(model, folder)
            self._protos[file] = model
        return self._protos[file]

    def load(self, file: str) -> ir.Model:
        """A new copy of an ONNX file as onnx-ir has it; external data stays in its file.

        Its locations are absolute: of files below a base directory onnx-ir refuses those with hard
        links, which cannot hurt where a file was held against its hash.
        """
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto(file))
        for tensor in all_tensors(proto):
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = str(self.data_folder / entry.value)
        return ir.from_proto(proto)

    @cached_property
    def stored(self) -> ir.Model:
        """``dit.onnx``; not to be changed."""
        return self.load(self.graph("dit").file)

    @cached_property
    def dit_graph(self) -> ir.Model:
        """The transformer's graph at `check_shape`; not to be changed.

        Raises:
            BadInput: an initializer that a small graph needs is not in the bundle.
        """
        if self.check_shape == self.shape:
            return self.stored
        model = build_dit_graph(self.dit_config, self.check_shape, self.recipe)
        constants = constant_tensors(self.dit_config, self.check_shape)
        for name, value in model.graph.initializers.items():
            if name in constants:
                value.const_value = ir.tensor(constants[name].numpy(), name=name)
            elif value.const_value is None:
                value.const_value = initializer(self.stored, name)
        return model

    @cached_property
    def lowered(self) -> LoweredDiT:
        """The transformer, to be lowered for ONNX Runtime at `check_shape`."""
        return LoweredDiT(self.dit_graph, self.data_folder, self.attention)


def initializer(model: ir.Model, name: str) -> ir.TensorProtocol:
    """Data of an initializer.

    Raises:
        BadInput: there is none of that name.
    """
    value = model.graph.initializers.get(name)
    if value is None or value.const_value is None:
        raise BadInput("graph has no such weight", where=name)
    return value.const_value


def stored_tensor(tensor: ir.TensorProtocol) -> Tensor:
    """A tensor as the torch modules hold it: FLOAT4E2M1 [N, K] is uint8 [N, K/2]."""
    if tensor.dtype == ir.DataType.FLOAT4E2M1:
        rows, columns = tensor.shape.numpy()
        raw = bytearray(tensor.tobytes())
        return torch.frombuffer(raw, dtype=torch.uint8).reshape(rows, columns // 2)
    return torch_tensor(tensor)
