"""From an ONNX bundle to the engines it becomes, by attention mode and backend."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import onnx_ir as ir

from fastwan.bundle import Graph, OnnxManifest
from fastwan.config import AttentionName, BackendName
from fastwan.engines.onnx_guard import checked_model
from fastwan.engines.plan import Dimensions, EngineSource, IoFormat
from fastwan.errors import BadInput
from fastwan.export.passes.cut_at_blocks import cut_at_blocks
from fastwan.export.passes.cut_at_regions import Region
from fastwan.export.passes.plan_dit import plan_dit
from fastwan.files import confined_file

USUAL_TEXT_LENGTH = 128
"""Tokens that the text encoder's engine is tuned for: a prompt of a few sentences."""

MAX_ENGINE_WEIGHTS = 1 << 31
"""Bytes of weights in one text encoder engine: a build holds about twice as much."""

_MEMORY = "memory_"


def plan_sources(
    onnx_bundle: Path,
    exported: OnnxManifest,
    *,
    attention: AttentionName,
    backend: BackendName,
    components: Collection[str],
) -> tuple[tuple[EngineSource, ...], tuple[Region, ...]]:
    """Sources of all engines in the order in which they run, and the regions between them.

    Args:
        onnx_bundle: folder of ``export.json``; every graph is checked before it is read.
        components: parts to build, of ``dit``, ``decoder``, ``text_encoder``.

    Raises:
        BadInput: a component that was not exported, or a graph that the guard refuses.
    """
    sources: list[EngineSource] = []
    regions: tuple[Region, ...] = ()
    if "text_encoder" in components:
        graph = _record(exported, "text_encoder")
        sources += _text_encoder(onnx_bundle, graph, exported)
    if "dit" in components:
        records = [_record(exported, name) for name in ("time_tables", "text_kv", "dit")]
        model = ir.from_proto(checked_model(*_read(onnx_bundle, records[-1])))
        _locate(model, onnx_bundle)
        linears = [linear for record in records for linear in record.linears]
        plan = plan_dit(model, linears, attention=attention, backend=backend)
        regions = plan.regions
        sources += [
            EngineSource(part.name, "dit", part.model, onnx_bundle, part.linears)
            for part in plan.parts
        ]
    if "decoder" in components:
        graph = _record(exported, "decoder")
        data, _, _ = _read(onnx_bundle, graph)
        formats: dict[str, IoFormat] = {
            # Nobody else reads what the decoder remembers: it stays as convolutions want it.
            spec.name: "hwc8"
            for spec in (*graph.inputs, *graph.outputs)
            if spec.name.startswith(_MEMORY) and spec.dtype == "float16"
        }
        sources.append(
            EngineSource("decoder", "decoder", data, onnx_bundle, graph.linears, None, formats)
        )
    return tuple(sources), regions


def _text_encoder(onnx_bundle: Path, graph: Graph, exported: OnnxManifest) -> list[EngineSource]:
    """One engine, or several in a row where one would take too much memory to build."""
    longest = exported.model.dit.get("text_length")
    if not isinstance(longest, int) or longest < 1:
        raise BadInput("the model has no text_length", where="export.json")
    model = ir.from_proto(checked_model(*_read(onnx_bundle, graph)))
    _locate(model, onnx_bundle)
    sources = []
    for piece in cut_at_blocks(model, MAX_ENGINE_WEIGHTS):
        nodes = {node.name for node in piece.graph}
        sources.append(
            EngineSource(
                str(piece.graph.name),
                "text_encoder",
                piece,
                onnx_bundle,
                tuple(linear for linear in graph.linears if linear.node in nodes),
                {str(v.name): _profile(v, longest) for v in piece.graph.inputs},
            )
        )
    return sources


def _profile(value: ir.Value, longest: int) -> tuple[Dimensions, Dimensions, Dimensions]:
    """(min, opt, max) shape of an input whose one dynamic axis counts tokens."""
    assert value.shape is not None
    usual = min(USUAL_TEXT_LENGTH, longest)
    smallest, typical, largest = (
        tuple(size if isinstance(size, int) else length for size in value.shape)
        for length in (1, usual, longest)
    )
    return smallest, typical, largest


def _record(exported: OnnxManifest, name: str) -> Graph:
    graph = exported.graphs.get(name)
    if graph is None:
        raise BadInput(
            f"the ONNX bundle has no {name}", where="export.json", fix="export that component too"
        )
    return graph


def _read(onnx_bundle: Path, graph: Graph) -> tuple[bytes, Path, str]:
    path = confined_file(onnx_bundle, graph.file)
    return path.read_bytes(), path.parent, graph.file


def _locate(model: ir.Model, folder: Path) -> None:
    """Tell external tensors where they lie, as ``onnx_ir.load`` does."""
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value.base_dir = folder
