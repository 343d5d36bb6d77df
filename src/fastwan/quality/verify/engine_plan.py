"""`engine_plan` and `attention_engines`: what the exported graph divides into is what was built."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import onnx_ir as ir

from fastwan.engines.backend import load_backend
from fastwan.engines.fallbacks import fallback_sources
from fastwan.engines.layer_json import bundle_layers
from fastwan.engines.plan import DitPlan, GraphPart, plan_dit
from fastwan.engines.regions import region_records
from fastwan.export.attentions import find_attention
from fastwan.export.passes.cut_at_regions import Region
from fastwan.export.passes.fusions import find_fusion
from fastwan.manifest import Engine, TensorSpec
from fastwan.quality.verify.report import Check
from fastwan.quality.verify.subject import Subject

T = TypeVar("T")
_PARTS = ("time_tables", "text_kv", "dit")
_Spec = tuple[object, ...]


class _Facts(NamedTuple):
    """What the manifest has to say of an engine.

    Attributes:
        plan: name of a plan that others share, and what it calls each tensor; None where it holds
            its weights.
    """

    cadence: str
    linears: tuple[str, ...]
    inputs: frozenset[_Spec]
    outputs: frozenset[_Spec]
    constants: frozenset[_Spec]
    plan: tuple[str, frozenset[tuple[str, str]]] | None


def check_engine_plan(subject: Subject) -> Check:
    """The transformer's engines and the regions between them, planned anew from ``dit.onnx``.

    The runtime launches what the manifest says: a region's tokens, scale or constants that are not
    those of the graph would make another video.
    """
    manifest = subject.manifest
    plan = _plan(subject)
    engines = {
        name: engine for name, engine in manifest.engines.items() if engine.component == "dit"
    }
    wrong = _differing({part.name: _planned(part) for part in plan.parts}, _recorded(engines))
    wrong += _differing(region_records(plan.regions, engines), manifest.regions)
    wrong += _wrong_fallbacks(subject, plan.regions)
    return Check(
        name="engine_plan",
        metric="engines, regions and fallbacks that differ from the plan of the graph",
        value=float(len(wrong)) if plan.parts else None,
        limit=0.0,
        note=f"{len(plan.parts)} engines, {len(plan.regions)} regions"
        + (f"; {wrong[0]}" if wrong else ""),
    )


def _wrong_fallbacks(subject: Subject, regions: Sequence[Region]) -> list[str]:
    """Fallbacks that are of other nodes than the graph's, or of other graphs; a bundle without any
    is complete, too."""
    manifest = subject.manifest
    if not manifest.fallbacks:
        return []
    sources = {each.engine.name: each for each in fallback_sources(regions, subject.data_folder)}
    wrong = sorted(sources.keys() ^ manifest.fallbacks.keys())
    for name in sources.keys() & manifest.fallbacks.keys():
        source, found = sources[name], manifest.fallbacks[name]
        same = (found.node, found.tensors) == (source.node, source.tensors)
        if not same or subject.bundle.read(found.graph) != source.engine.model:
            wrong.append(name)
    return wrong


def check_attention_engines(subject: Subject) -> Check:
    """Every attention of the graph by the kernel that the bundle's attention asks for."""
    attention = find_attention(subject.manifest.attention)
    layers = bundle_layers(subject.bundle)
    plan = _plan(subject)
    faults = [
        fault
        for part in plan.parts
        for fault in attention.faults(
            [str(node.name) for node in part.model.graph], layers.get(part.name, ())
        )
    ]
    return Check(
        name="attention_engines",
        metric=f"attentions without {attention.wanted}",
        value=float(len(faults)) if plan.parts else None,
        limit=0.0,
        note=f"{subject.dit_config.num_layers} attentions" + (f"; {faults[0]}" if faults else ""),
    )


def _plan(subject: Subject) -> DitPlan:
    manifest = subject.manifest
    linears = [linear for name in _PARTS for linear in subject.graph(name).linears]
    return plan_dit(
        subject.load(subject.graph("dit").file),
        linears,
        attention=find_attention(manifest.attention),
        plugins=load_backend(manifest.backend).takes_plugins,
        fusion=find_fusion(manifest.fusion),
        weights=manifest.weights,
    )


def _differing(expected: Mapping[str, T], found: Mapping[str, T]) -> list[str]:
    names = expected.keys() | found.keys()
    return sorted(name for name in names if expected.get(name) != found.get(name))


def _planned(part: GraphPart) -> _Facts:
    def specs(values: Iterable[ir.Value]) -> frozenset[_Spec]:
        return frozenset(map(_spec, values))

    graph, gemm = part.model.graph, part.gemm
    return _Facts(
        part.cadence,
        tuple(linear.name for linear in part.linears),
        specs(graph.inputs),
        specs(graph.outputs),
        specs(() if gemm is None else gemm.constants),
        None if gemm is None else (gemm.name, frozenset(gemm.bindings.items())),
    )


def _spec(value: ir.Value) -> _Spec:
    assert value.dtype is not None
    assert value.shape is not None
    return str(value.name), value.dtype.numpy().name, tuple(value.shape.numpy())


def _recorded(engines: Mapping[str, Engine]) -> dict[str, _Facts]:
    def specs(tensors: Iterable[TensorSpec]) -> frozenset[_Spec]:
        return frozenset((spec.name, spec.dtype, spec.shape) for spec in tensors)

    return {
        name: _Facts(
            engine.runs,
            tuple(linear.name for linear in engine.linears),
            specs(engine.inputs),
            specs(engine.outputs),
            specs(engine.constants),
            (Path(engine.file).stem, frozenset(engine.bindings.items()))
            if engine.bindings
            else None,
        )
        for name, engine in engines.items()
    }
