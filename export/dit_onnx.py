"""Write ``dit.onnx``: the transformer's graph joined to its quantised weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor

from fastwan.bundle import Graph, TensorSpec
from fastwan.config import DiTConfig, Recipe, VideoShape
from fastwan.export.dit_graph import build_dit_graph, targeted_linears
from fastwan.export.onnx_io import DataWriter, TensorSource, data_file, save_model
from fastwan.export.passes.expand_nvfp4 import expand_nvfp4
from fastwan.export.passes.graphs import clone
from fastwan.export.passes.lower_for_onnxruntime import lower_for_onnxruntime
from fastwan.export.passes.split_text import split_text
from fastwan.export.quantize import modelopt_quantizer
from fastwan.export.weights import constant_tensors, load_weights, weight_groups
from fastwan.progress import Progress, Quiet, stage

CPU_REFERENCE_TOKENS = 2048
"""Longest video, in tokens, that the CPU reference is written for: its attention is unrolled."""

DATA = "dit.data"
WORKERS = 2


def export_dit(
    source: TensorSource,
    config: DiTConfig,
    shape: VideoShape,
    recipe: Recipe,
    folder: Path,
    *,
    progress: Progress | None = None,
) -> tuple[dict[str, Graph], dict[str, str]]:
    """Export the transformer.

    Writes ``dit.onnx`` and ``dit.data`` and, up to `CPU_REFERENCE_TOKENS`, the CPU reference
    ``text_kv.cpu.onnx`` and ``dit.cpu.onnx`` over the same data file.

    Args:
        source: checkpoint tensors under diffusers' names.
        folder: existing folder of the ONNX bundle.

    Returns:
        Graph records by name, and the SHA-256 by initializer of what the reference quantiser
        makes of the checkpoint; `verify` holds the file against them.
    """
    progress = progress or Quiet()
    torch.set_num_threads(1)  # OpenMP collapses when two workers share two cores
    with stage(progress, "trace transformer"):
        model = build_dit_graph(config, shape, recipe.linears)
        expand_nvfp4(model, activation_global_scale=recipe.activation_global_scale)
    initializers = model.graph.initializers
    constants = constant_tensors(config, shape)
    digests: dict[str, str] = {}
    total = len(weight_groups(config))
    with (
        stage(progress, "quantise transformer", total, "tensors"),
        data_file(folder / DATA) as writer,
    ):
        for name, tensor in constants.items():
            _attach(initializers[name], tensor, writer)
        weights = load_weights(
            source, config, recipe.linears, quantize=modelopt_quantizer(recipe), workers=WORKERS
        )
        for group, tensors in weights:
            for name, tensor in tensors.items():
                _attach(initializers[name], tensor, writer)
            progress.advance(1, group.name)
    with stage(progress, "digest reference weights", total, "tensors"):
        for name, tensor in constants.items():
            digests[name] = tensor_digest(tensor)
        for group, tensors in load_weights(source, config, recipe.linears, workers=WORKERS):
            digests |= {name: tensor_digest(tensor) for name, tensor in tensors.items()}
            progress.advance(1, group.name)
    with stage(progress, "write dit.onnx"):
        save_model(model, folder / "dit.onnx")
        cpu_files = _write_cpu_reference(model, shape, folder)
    return _records(model, config, recipe, cpu_files), digests


def tensor_digest(tensor: Tensor) -> str:
    """Hex SHA-256 of a tensor's bytes."""
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(raw.data).hexdigest()


def _attach(value: ir.Value, tensor: Tensor, writer: DataWriter) -> None:
    """Give an initializer its data: type and shape are the graph's, the bytes the tensor's."""
    shape = tuple(value.shape.numpy())  # type: ignore[union-attr]
    assert value.dtype is not None
    value.const_value = writer.add(str(value.name), tensor, dtype=value.dtype, shape=shape)


def split(model: ir.Model) -> dict[str, ir.Model]:
    """The two graphs of a generation: ``text_kv``, once a prompt, and ``dit``, once a step."""
    text, dit = split_text(model)
    return {"text_kv": text, "dit": dit}


def _write_cpu_reference(model: ir.Model, shape: VideoShape, folder: Path) -> dict[str, str]:
    if shape.num_tokens > CPU_REFERENCE_TOKENS:
        return {}
    files = {}
    for name, part in split(model).items():
        lowered, _ = lower_for_onnxruntime(clone(part))
        files[name] = f"{name}.cpu.onnx"
        save_model(lowered, folder / files[name])
    return files


def _records(
    model: ir.Model, config: DiTConfig, recipe: Recipe, cpu_files: dict[str, str]
) -> dict[str, Graph]:
    linears = targeted_linears(config, recipe.linears)
    records = {}
    for name, part in split(model).items():
        nodes = {node.name for node in part.graph}
        records[name] = Graph(
            file="dit.onnx",
            data=(DATA,),
            cpu_file=cpu_files.get(name),
            inputs=tuple(map(tensor_spec, part.graph.inputs)),
            outputs=tuple(map(tensor_spec, part.graph.outputs)),
            linears=tuple(linear for linear in linears if linear.node in nodes),
        )
    return records


def tensor_spec(value: ir.Value) -> TensorSpec:
    """Record of a graph input or output."""
    assert value.dtype is not None
    assert value.shape is not None
    dimensions = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)
    return TensorSpec(name=str(value.name), dtype=value.dtype.name.lower(), shape=dimensions)
