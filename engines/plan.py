"""From an ONNX bundle to the engines it becomes, by attention mode and backend."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import onnx_ir as ir

from fastwan.bundle import Graph, OnnxManifest, Profile
from fastwan.config import AttentionName, BackendName
from fastwan.engines.plan_dit import plan_dit
from fastwan.engines.source import EngineSource, IoFormat
from fastwan.errors import BadInput
from fastwan.export.passes.cut_at_blocks import cut_at_blocks
from fastwan.export.passes.cut_at_regions import Region
from fastwan.files import confined_file
from fastwan.onnx_guard import checked_model

TEXT_BUCKETS = (128, 256, 512)
"""Most tokens of a prompt in each optimization profile of the text encoder.

A profile has kernels of its own, over the same weights. Of two blocks of UMT5-XXL, three profiles
in place of one took TensorRT-RTX 3.6 instead of 1.8 CPU-seconds to build in bf16 and 7.3 instead
of 2.9 in NVFP4, for engines that are 0.4 and 1.3 % larger with the same scratch (measured). Below
117 tokens a bf16 GEMM at the rates of the table takes as long as reading its weights (predicted),
and FP4 tiles have 128 rows: shorter buckets would cost as much again and gain nothing.
"""

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
                {str(v.name): _profiles(v, longest) for v in piece.graph.inputs},
            )
        )
    return sources


def _profiles(value: ir.Value, longest: int) -> tuple[Profile, ...]:
    """A profile a bucket for an input whose dynamic axes all count tokens.

    Each begins where the one before it ends, and is tuned for its longest prompt: the shortest
    cost little more than their weights whatever the kernel.
    """
    shape = value.shape
    assert shape is not None

    def sized(length: int) -> tuple[int, ...]:
        return tuple(size if isinstance(size, int) else length for size in shape)

    uppers = [bucket for bucket in TEXT_BUCKETS if bucket < longest] + [longest]
    lowers = [1] + [upper + 1 for upper in uppers[:-1]]
    return tuple(
        (sized(lower), sized(upper), sized(upper))
        for lower, upper in zip(lowers, uppers, strict=True)
    )


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
