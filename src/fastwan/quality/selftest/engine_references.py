"""Each engine of a bundle's transformer on ONNX Runtime, each region in torch: the references."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
import torch

from fastwan.dtypes import PAIRED
from fastwan.engines.backend import load_backend
from fastwan.engines.plan import GraphPart, plan_dit
from fastwan.errors import BadInput
from fastwan.export.attentions import find_attention
from fastwan.export.dit_onnx import CPU_REFERENCE_TOKENS
from fastwan.export.passes.fusions import find_fusion
from fastwan.export.passes.graphs import clone
from fastwan.export.passes.lower_for_onnxruntime import lower_for_onnxruntime
from fastwan.manifest import Region
from fastwan.plugins.regions import region_op
from fastwan.quality.selftest.memory import to_numpy, to_torch
from fastwan.quality.verify.executor import MemoryExecutor
from fastwan.quality.verify.subject import Subject
from fastwan.runtime.device.constants import initializers
from fastwan.runtime.model.executor import Array

Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class Ran:
    """One engine of a step with what it was given and what it made, by name."""

    name: str
    inputs: dict[str, Array]
    outputs: dict[str, Array]


class EngineReferences:
    """The transformer divided as its engines were, lowered to standard operators.

    Args:
        subject: the bundle.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._manifest = subject.manifest
        self._executors: dict[str, MemoryExecutor] = {}
        small = subject.shape.num_tokens <= CPU_REFERENCE_TOKENS
        self._threads = 1 if small else os.cpu_count() or 1

    @cached_property
    def _parts(self) -> dict[str, GraphPart]:
        manifest = self._manifest
        plan = plan_dit(
            self._subject.stored,
            self._subject.expected_linears,
            attention=find_attention(manifest.attention),
            plugins=load_backend(manifest.backend).takes_plugins,
            fusion=find_fusion(manifest.fusion),
            weights=manifest.weights,
        )
        return {part.name: part for part in plan.parts}

    def run(self, name: str, inputs: Arrays) -> dict[str, Array]:
        """An engine of the transformer by its name in the manifest.

        Args:
            inputs: at least its own.

        Returns:
            its outputs, in the dtypes that the engine has.

        Raises:
            BadInput: the bundle's graph has no such part.
        """
        if name not in self._executors:
            if name not in self._parts:
                raise BadInput("the graph of the transformer has no such engine", where=name)
            model = clone(self._parts[name].model)
            form = find_attention(self._manifest.attention).reference
            lowered, _ = lower_for_onnxruntime(model, attention=form)
            self._executors[name] = MemoryExecutor(
                lowered, self._subject.data_folder, threads=self._threads
            )
        record = self._manifest.engines[name]
        made = self._executors[name].run(
            {spec.name: _as_lowered(inputs[spec.name]) for spec in record.inputs}
        )
        return {spec.name: made[spec.name].astype(spec.dtype) for spec in record.outputs}

    def step(self, latents: Array, timestep: int, prompt_embeds: Array) -> Iterator[Ran]:
        """The engines of one denoising step in their order, regions between them in torch.

        Args:
            latents: [1, C, T, H, W], fp32.
            prompt_embeds: [1, text_length, text_dim].

        Raises:
            BadInput: a region that has no reference.
        """
        time = np.array([timestep], np.float32)
        values = {"latents": latents, "timestep": time, "encoder_hidden_states": prompt_embeds}
        values |= self._constants
        for name, engine in self._manifest.engines.items():
            if engine.component != "dit":
                continue
            given = {
                spec.name: np.ascontiguousarray(values[spec.name], _numpy_dtype(spec.dtype))
                for spec in engine.inputs
            }
            made = self.run(name, given)
            values |= made
            if engine.runs == "step":
                yield Ran(name, given, made)
            for region in self._manifest.regions.values():
                if region.after == name:
                    _launch(region, values)

    @cached_property
    def _constants(self) -> dict[str, Array]:
        """Weights that regions read."""
        specs = {s.name: s for each in self._manifest.regions.values() for s in each.constants}
        contents = initializers(self._subject.bundle, list(specs))
        return {
            name: np.frombuffer(content, np.dtype(specs[name].dtype)).reshape(
                [int(size) for size in specs[name].shape]
            )
            for name, content in contents
        }


def _numpy_dtype(name: str) -> np.dtype[Any]:
    """Of an engine's tensor in host memory: bytes for numbers that lie two a byte."""
    return np.dtype("uint8" if name in PAIRED else name)


def _as_lowered(values: Array) -> Array:
    """As a lowered graph takes it: FP4 codes and their scales are bytes there."""
    return values.view(np.uint8) if values.dtype == ml_dtypes.float8_e4m3fn else values


def _launch(region: Region, values: dict[str, Array]) -> None:
    specs = {spec.name: spec for spec in region.tensors}
    for node in region.nodes:
        op = region_op(node, specs)
        on = "cuda" if torch.cuda.is_available() else "cpu"
        made = op.reference(*(to_torch(values[name]).to(on) for name in node.inputs))
        values.update(
            (name, to_numpy(value.cpu())) for name, value in zip(node.outputs, made, strict=True)
        )
