"""`<format>_graph` and `<format>_engines`: no targeted linear lost the format of its recipe.

One pair of checks for each gate, e.g. `fp4_graph` and `fp4_engines`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx

from fastwan.config import DiTConfig
from fastwan.engines.coverage import check_coverage, check_onnx_linears
from fastwan.engines.layer_json import bundle_layers
from fastwan.errors import VerificationFailed
from fastwan.export.recipes import Gate, Recipe, find_recipe
from fastwan.export.text_encoder_onnx import targeted_linears as text_encoder_linears
from fastwan.manifest import Linear
from fastwan.quality.verify.report import Check
from fastwan.quality.verify.subject import Subject

_ATTENTIONS = ("attn1", "attn2")
_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
_FEED_FORWARD = ("ffn.net.0.proj", "ffn.net.2")
_SHOWN = 4


def expected_sources(config: DiTConfig) -> frozenset[str]:
    """Checkpoint names of the ten targeted linears of every block."""
    return frozenset(
        f"blocks.{index}.{name}"
        for index in range(config.num_layers)
        for name in (*(f"{a}.{p}" for a in _ATTENTIONS for p in _PROJECTIONS), *_FEED_FORWARD)
    )


def gates(subject: Subject) -> tuple[Gate, ...]:
    """Gates of the recipes of a bundle's components."""
    found = (recipe.gate for recipe in _recipes(subject).values())
    return tuple(dict.fromkeys(gate for gate in found if gate is not None))


def engines_check(gate: Gate) -> str:
    """Name of the check that no linear of a gate lost its format in the engines."""
    return f"{gate.label.lower()}_engines"


def _recipes(subject: Subject) -> dict[str, Recipe]:
    """Recipe by component."""
    recipes = {}
    if "dit" in subject.present:
        recipes["dit"] = subject.recipe
    if "text_encoder" in subject.present:
        recipes["text_encoder"] = subject.text_recipe
    return recipes


def check_graph(subject: Subject, gate: Gate) -> Check:
    """Every targeted linear has the weight and the activation of its recipe."""
    covered: set[str] = set()
    reasons: list[str] = []
    for name in subject.graphs:
        record = subject.graphs[name]
        linears = _held_by(gate, record.linears)
        if linears:
            found, why = sound_linears(subject.proto(record.file), linears)
            covered.update(source for linear in found for source in linear.sources)
            reasons += why
    metric = f"targeted linears that are not {gate.label} in the graph"
    return _missing(f"{gate.label.lower()}_graph", metric, subject, gate, covered, reasons)


def check_engines(subject: Subject, gate: Gate) -> Check:
    """Every targeted linear is computed as its recipe wants, by the engines' layer records."""
    layers = bundle_layers(subject.bundle)
    elements: dict[str, int] = {}
    for name, recipe in _recipes(subject).items():
        if recipe.gate is gate:
            expected = expected_nodes(subject, name)
            elements |= weight_elements(subject.proto(subject.graph(name).file), expected)
    covered: set[str] = set()
    reasons: list[str] = []
    for name, engine in subject.manifest.engines.items():
        coverage = check_coverage(layers[name], _held_by(gate, engine.linears), elements)
        covered.update(source for linear in coverage.covered for source in linear.sources)
        reasons += [f"{linear.name}: {reason}" for linear, reason in coverage.lost]
    metric = f"targeted linears without {gate.wanted}"
    return _missing(engines_check(gate), metric, subject, gate, covered, reasons)


def _held_by(gate: Gate, linears: Sequence[Linear]) -> list[Linear]:
    return [linear for linear in linears if find_recipe(linear.format).gate is gate]


def expected_nodes(subject: Subject, component: str) -> tuple[Linear, ...]:
    """Targeted linears of a component as they follow from its configuration."""
    if component == "dit":
        return subject.expected_linears
    return text_encoder_linears(subject.text_config, subject.text_recipe)


def weight_elements(model: onnx.ModelProto, linears: Sequence[Linear]) -> dict[str, int]:
    """Elements of the weight by MatMul node, for those linears that are sound in the graph."""
    elements: dict[str, int] = {}
    for linear in sound_linears(model, linears)[0]:
        elements |= check_onnx_linears(model, [linear])
    return elements


def sound_linears(
    model: onnx.ModelProto, linears: Sequence[Linear]
) -> tuple[list[Linear], list[str]]:
    """Linears that are of their recipe in a graph, and what is wrong with the others."""
    try:
        check_onnx_linears(model, linears)
    except VerificationFailed:
        pass
    else:
        return list(linears), []
    good, reasons = [], []
    for linear in linears:
        try:
            check_onnx_linears(model, [linear])
        except VerificationFailed as error:
            reasons.append(error.what)
        else:
            good.append(linear)
    return good, reasons


def _missing(
    name: str,
    metric: str,
    subject: Subject,
    gate: Gate,
    covered: Iterable[str],
    reasons: Sequence[str],
) -> Check:
    expected: set[str] = set()
    for component, recipe in _recipes(subject).items():
        if recipe.gate is not gate:
            continue
        if component == "dit":
            expected |= expected_sources(subject.dit_config)
        else:
            linears = expected_nodes(subject, component)
            expected.update(source for linear in linears for source in linear.sources)
    missing = sorted(expected - set(covered))
    note = f"{len(expected)} linears expected"
    if missing:
        shown = "; ".join(reasons[:_SHOWN]) or ", ".join(missing[:_SHOWN])
        note = f"{note}; {shown}"
    value = float(len(missing)) if expected else None
    return Check(name=name, metric=metric, value=value, limit=0.0, note=note)
