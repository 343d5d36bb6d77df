"""Write ``dit.onnx``: the transformer's graph joined to its quantised weights."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import onnx_ir as ir

from fastwan.config import DiTConfig, VideoShape
from fastwan.export.attentions import Attention
from fastwan.export.cache import ExportCache, content_key
from fastwan.export.dit_graph import build_dit_graph, targeted_linears
from fastwan.export.onnx_io import TensorSource, attach, data_file, save_model
from fastwan.export.passes.graphs import clone, nbytes
from fastwan.export.passes.lower_for_onnxruntime import lower_for_onnxruntime
from fastwan.export.passes.split_dit import split_dit
from fastwan.export.recipes import Recipe
from fastwan.export.weight_groups import weight_groups
from fastwan.export.weights import constant_tensors, make_weights, tensor_digest
from fastwan.manifest import Graph, TensorSpec
from fastwan.parallel import collector_paused, one_torch_thread, workers
from fastwan.progress import Progress, Quiet, stage

CPU_REFERENCE_TOKENS = 2048
"""Longest video, in tokens, that the CPU reference is written for: its attention is unrolled."""

GRAPH, DATA = "dit.onnx", "dit.data"
_CPU = ".cpu.onnx"


@one_torch_thread()
def export_dit(
    source: TensorSource,
    config: DiTConfig,
    shape: VideoShape,
    recipe: Recipe,
    folder: Path,
    *,
    attention: Attention,
    cache: ExportCache | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, Graph], dict[str, str]]:
    """Export the transformer.

    Writes ``dit.onnx`` and ``dit.data`` and, up to `CPU_REFERENCE_TOKENS`, the CPU reference
    (``time_tables.cpu.onnx``, ``text_kv.cpu.onnx``, ``dit.cpu.onnx``) over the same data file.

    Args:
        source: checkpoint tensors under diffusers' names.
        folder: existing folder of the ONNX bundle.
        attention: what the model was made for; the CPU reference computes it.
        cache: where finished graphs and linears are taken from and left.

    Returns:
        Graph records by name, and the SHA-256 by initializer of what the reference quantiser
        makes of the checkpoint; `verify` holds the file against them.
    """
    progress = progress or Quiet()
    facts = {"config": asdict(config), "shape": asdict(shape), "recipe": asdict(recipe)}
    key = content_key("dit", {**facts, "attention": attention.name})
    found = _finished(cache, key, folder) if cache is not None else None
    if found is not None:
        model, cpu_files = found
    else:
        with stage(progress, "trace transformer"), collector_paused():
            model = build_dit_graph(config, shape, recipe)
    digests = _write_weights(model, source, config, shape, recipe, folder / DATA, cache, progress)
    if found is None:
        with stage(progress, "write dit.onnx"):
            save_model(model, folder / GRAPH)
            cpu_files = _write_cpu_reference(model, shape, attention, folder)
        if cache is not None:
            names = (GRAPH, *cpu_files.values())
            cache.put(key, {name: folder / name for name in names}, {})
    return _records(model, config, recipe, cpu_files), digests


def _finished(cache: ExportCache, key: str, folder: Path) -> tuple[ir.Model, dict[str, str]] | None:
    """Bring a finished graph into `folder`; its data file is still to be written.

    Returns:
        The graph, and the CPU reference's files by graph name; None where the cache has none.
    """
    record = cache.copy(key, folder)
    if record is None:
        return None
    names = [name.removesuffix(_CPU) for name in record.files if name.endswith(_CPU)]
    return ir.load(folder / GRAPH), {name: name + _CPU for name in names}


def _write_weights(
    model: ir.Model,
    source: TensorSource,
    config: DiTConfig,
    shape: VideoShape,
    recipe: Recipe,
    path: Path,
    cache: ExportCache | None,
    progress: Progress,
) -> dict[str, str]:
    """Write the data file and attach it to the graph; returns the reference's digests."""
    initializers = model.graph.initializers
    constants = constant_tensors(config, shape)
    groups = len(weight_groups(config))
    weights = make_weights(source, config, recipe, cache=cache, workers=workers())
    total = sum(nbytes(value) for value in initializers.values())
    digests = {name: tensor_digest(tensor) for name, tensor in constants.items()}
    with stage(progress, "quantise transformer", total, "bytes"), data_file(path) as writer:
        for name, tensor in constants.items():
            attach(initializers[name], tensor, writer)
        for index, (group, made) in enumerate(weights):
            for name, tensor in made.tensors.items():
                attach(initializers[name], tensor, writer)
            digests |= made.digests
            size = sum(nbytes(initializers[name]) for name in made.tensors)
            progress.advance(size, f"tensors of {index + 1}/{groups}: {group.name}")
    return digests


def _write_cpu_reference(
    model: ir.Model, shape: VideoShape, attention: Attention, folder: Path
) -> dict[str, str]:
    if shape.num_tokens > CPU_REFERENCE_TOKENS:
        return {}
    files = {}
    for name, part in split_dit(model).items():
        lowered, _ = lower_for_onnxruntime(clone(part), attention=attention.reference)
        files[name] = name + _CPU
        save_model(lowered, folder / files[name])
    return files


def _records(
    model: ir.Model, config: DiTConfig, recipe: Recipe, cpu_files: dict[str, str]
) -> dict[str, Graph]:
    linears = targeted_linears(config, recipe)
    records = {}
    for name, part in split_dit(model).items():
        nodes = {node.name for node in part.graph}
        records[name] = Graph(
            file=GRAPH,
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
