"""From an ONNX bundle to the sources of its engines, by attention and backend."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from fastwan.engines.source import EngineSource, IoFormat, SharedPlan
from fastwan.errors import BadInput, VerificationFailed
from fastwan.export.attentions import Attention
from fastwan.export.passes.bare_gemm import BareGemm
from fastwan.export.passes.cut_at_blocks import cut_at_blocks
from fastwan.export.passes.cut_at_regions import Region
from fastwan.export.passes.cut_text import cut_text
from fastwan.export.passes.fusions import NONE, Fusion, fastest_fusion
from fastwan.export.passes.phase_convolutions import phase_convolutions
from fastwan.export.passes.split_dit import split_dit
from fastwan.export.passes.split_statistics import split_statistics
from fastwan.export.recipes import Recipe, find_recipe
from fastwan.files import confined_file
from fastwan.manifest import Cadence, Graph, Linear, OnnxManifest, Profile, TensorSpec
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

INLINE, DATA = "inline", "data"
"""Rows of `fastwan.config.WEIGHTS`."""

_MEMORY = "memory_"


@dataclass(frozen=True)
class GraphPart:
    """A graph to build one engine from.

    Attributes:
        cadence: how often the engine runs.
        linears: targeted linears in it.
        gemm: what it is where it is given its weights; None where it holds them.
    """

    name: str
    model: ir.Model
    cadence: Cadence
    linears: tuple[Linear, ...]
    gemm: BareGemm | None = None


@dataclass(frozen=True)
class DitPlan:
    """The transformer's engines in the order in which they run, and the regions between them."""

    parts: tuple[GraphPart, ...]
    regions: tuple[Region, ...]


def plan_sources(
    onnx_bundle: Path,
    exported: OnnxManifest,
    *,
    attention: Attention,
    plugins: bool,
    components: Collection[str],
    fusion: Fusion = NONE,
    weights: str = INLINE,
) -> tuple[tuple[EngineSource, ...], tuple[Region, ...]]:
    """Sources of all engines in the order in which they run, and the regions between them.

    Args:
        onnx_bundle: folder of ``export.json``; every graph is checked before it is read.
        plugins: whether the backend's engines hold nodes of the plugin library.
        components: parts to build, of ``dit``, ``decoder``, ``text_encoder``.
        fusion: what becomes a region beside the attention.
        weights: see `plan_dit`.

    Raises:
        BadInput: a component that was not exported, a graph that the guard refuses, or see
            `plan_dit`.
        VerificationFailed: see `plan_dit`.
    """
    sources: list[EngineSource] = []
    regions: tuple[Region, ...] = ()
    if "text_encoder" in components:
        sources += _text_encoder(onnx_bundle, exported)
    if "dit" in components:
        records = [_record(exported, name) for name in ("time_tables", "text_kv", "dit")]
        linears = [linear for record in records for linear in record.linears]
        model = _load(onnx_bundle, records[-1])
        plan = plan_dit(
            model, linears, attention=attention, plugins=plugins, fusion=fusion, weights=weights
        )
        regions = plan.regions
        sources += [_source(part, onnx_bundle) for part in plan.parts]
    if "decoder" in components:
        sources.append(_decoder(onnx_bundle, _record(exported, "decoder")))
    return tuple(sources), regions


def choose_fusion(
    onnx_bundle: Path, exported: OnnxManifest, *, attention: Attention, plugins: bool
) -> Fusion:
    """The fastest fusion of a bundle's transformer; none where it has no transformer.

    Args:
        plugins: see `plan_sources`.

    Raises:
        BadInput: a graph that the guard refuses.
    """
    if "dit" not in exported.graphs:
        return NONE
    model = _load(onnx_bundle, exported.graphs["dit"])
    return fastest_fusion(model, attention, plugins=plugins)


def plan_dit(
    model: ir.Model,
    linears: Sequence[Linear],
    *,
    attention: Attention,
    plugins: bool,
    fusion: Fusion = NONE,
    weights: str = INLINE,
) -> DitPlan:
    """Divide the transformer's graph for an attention and a backend.

    What a timestep alone (``time_tables``) and the prompt alone (``text_kv``) decide are engines of
    their own in every mode, see `split_dit` and `cut_text`. The rest is divided by the attention.

    Args:
        model: as ``dit.onnx`` holds it; left unchanged.
        linears: all targeted linears of the graph.
        plugins: see `plan_sources`.
        fusion: likewise.
        weights: row of `fastwan.config.WEIGHTS`. As data, every targeted linear of a step that is
            alone in its engine is given its weight there.

    Raises:
        BadInput: the graph has nothing for the fusion to lift, or what it lifts would be inside an
            engine, or weights are to be data and every engine holds more than a GEMM.
        VerificationFailed: a linear is in no engine, where no gate would see it.
    """
    as_data = weights == DATA
    lifted = fusion.apply(model)
    recipes = {linear.format: find_recipe(linear.format) for linear in linears}
    if as_data:
        for recipe in recipes.values():
            recipe.scale_behind(lifted)
    apart = split_dit(lifted)
    if attention.takes_row_scales:
        for recipe in recipes.values():
            recipe.scale_rows(apart["dit"])
    step = attention.divide(apart["dit"], plugins=plugins)
    fusion.require_outside(model, lifted, step.models)
    for part in step.models:
        for recipe in recipes.values():
            recipe.arrange(part)
        split_statistics(part)
    graphs: list[tuple[Cadence, ir.Model]] = [
        ("schedule", apart["time_tables"]),
        *(("prompt", part) for part in cut_text(apart["text_kv"])),
        *(("step", part) for part in step.models),
    ]
    parts = []
    for cadence, graph in graphs:
        nodes = {node.name for node in graph.graph}
        inside = tuple(linear for linear in linears if linear.node in nodes)
        gemm = None
        if as_data and cadence == "step" and inside:
            gemm = recipes[inside[0].format].bare_gemm(graph)
        parts.append(GraphPart(str(graph.graph.name), graph, cadence, inside, gemm))
    gives = any(recipe.gives_weights for recipe in recipes.values())
    if as_data and not any(part.gemm for part in parts):
        raise BadInput(
            "no linear of a step is alone in its engine, so that it could be given its weight",
            where=f"--weights {DATA}",
            fix=f"--fusion all, or --weights {INLINE}" if gives else f"--weights {INLINE}",
        )
    held = {linear.name for part in parts for linear in part.linears}
    lost = [linear.name for linear in linears if linear.name not in held]
    if lost:
        raise VerificationFailed(
            f"{len(lost)} targeted linears are in no engine, {lost[0]} among them",
            where=f"attention {attention.name}",
            fix="dividing the graph must keep the nodes of linears and their names",
        )
    return DitPlan(tuple(parts), step.regions)


def default_weights(fusion: Fusion, recipe: Recipe) -> str:
    """Row of `fastwan.config.WEIGHTS`: data where that leaves no GEMM with a weight of its own.

    It costs two small kernels a GEMM, 0.2 % of a predicted video at full size, and saves a plan a
    block and shape.
    """
    return DATA if fusion.bare and recipe.gives_weights else INLINE


def _source(part: GraphPart, onnx_bundle: Path) -> EngineSource:
    model = serialized(part.model)
    source = EngineSource(part.name, "dit", model, onnx_bundle, part.cadence, part.linears)
    if part.gemm is None:
        return source
    gemm, graph = part.gemm, part.model.graph
    shared = SharedPlan(
        gemm.name,
        serialized(gemm.model),
        inputs=tuple(map(_spec, graph.inputs)),
        constants=tuple(map(_spec, gemm.constants)),
        outputs=tuple(map(_spec, graph.outputs)),
        bindings=gemm.bindings,
        nodes=gemm.nodes,
    )
    return replace(source, shared=shared)


def _spec(value: ir.Value) -> TensorSpec:
    assert value.dtype is not None
    assert value.shape is not None
    name = str(value.name)
    return TensorSpec(name=name, dtype=value.dtype.numpy().name, shape=value.shape.numpy())


def _decoder(onnx_bundle: Path, graph: Graph) -> EngineSource:
    divided = phase_convolutions(_load(onnx_bundle, graph))[0]
    formats: dict[str, IoFormat] = {
        # Only the decoder reads its memories: they stay as convolutions want them.
        spec.name: "hwc8"
        for spec in (*graph.inputs, *graph.outputs)
        if spec.name.startswith(_MEMORY) and spec.dtype == "float16"
    }
    return EngineSource(
        "decoder",
        "decoder",
        serialized(divided),
        onnx_bundle,
        "latent",
        graph.linears,
        io_formats=formats,
    )


def _text_encoder(onnx_bundle: Path, exported: OnnxManifest) -> list[EngineSource]:
    """One engine, or several in a row where one would take too much memory to build."""
    graph = _record(exported, "text_encoder")
    longest = exported.model.dit.text_length
    sources = []
    for piece in cut_at_blocks(_load(onnx_bundle, graph), MAX_ENGINE_WEIGHTS):
        nodes = {node.name for node in piece.graph}
        sources.append(
            EngineSource(
                str(piece.graph.name),
                "text_encoder",
                serialized(piece),
                onnx_bundle,
                "prompt",
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


def _load(onnx_bundle: Path, graph: Graph) -> ir.Model:
    model = ir.from_proto(checked_model(*_read(onnx_bundle, graph)))
    ir.external_data.set_base_dir(model.graph, onnx_bundle)
    return model


def serialized(model: ir.Model) -> bytes:
    """A graph as protobuf bytes; external data stays where it is."""
    return bytes(ir.to_proto(model).SerializeToString(deterministic=True))
