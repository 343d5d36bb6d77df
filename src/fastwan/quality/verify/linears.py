"""`fp4_graph` and `fp4_engines`: no targeted linear lost FP4, in the graph or in an engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx

from fastwan.bundle import Linear
from fastwan.config import DiTConfig
from fastwan.engines.coverage import check_coverage, check_onnx_linears
from fastwan.engines.layers import bundle_layers
from fastwan.errors import VerificationFailed
from fastwan.export.text_encoder_onnx import targeted_linears as text_encoder_linears
from fastwan.quality.verify.modules import text_encoder_format
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


def check_graph(subject: Subject) -> Check:
    """Every targeted linear is FLOAT4E2M1 with a dynamically quantised activation."""
    covered: set[str] = set()
    reasons: list[str] = []
    for name in subject.graphs:
        record = subject.graphs[name]
        linears = [linear for linear in record.linears if linear.format == "nvfp4"]
        if linears:
            found, why = fp4_linears(subject.proto(record.file), linears)
            covered.update(source for linear in found for source in linear.sources)
            reasons += why
    return _missing(
        "fp4_graph", "targeted linears that are not FP4 in the graph", subject, covered, reasons
    )


def check_engines(subject: Subject) -> Check:
    """Every targeted linear is computed by an FP4 GEMM of an engine, by its layer records."""
    layers = bundle_layers(subject.bundle)
    elements: dict[str, int] = {}
    for name in ("dit", "text_encoder"):
        if name in subject.graphs and (expected := expected_nodes(subject, name)):
            elements |= weight_elements(subject.proto(subject.graphs[name].file), expected)
    covered: set[str] = set()
    reasons: list[str] = []
    for name, engine in subject.manifest.engines.items():
        coverage = check_coverage(layers[name], engine.linears, elements)
        covered.update(source for linear in coverage.covered for source in linear.sources)
        reasons += [f"{linear.name}: {reason}" for linear, reason in coverage.lost]
    return _missing(
        "fp4_engines", "targeted linears without an FP4 GEMM", subject, covered, reasons
    )


def expected_nodes(subject: Subject, component: str) -> tuple[Linear, ...]:
    """Targeted linears of a component as they follow from its configuration."""
    if component == "dit":
        return subject.expected_linears
    return text_encoder_linears(subject.text_config, text_encoder_format(subject))


def weight_elements(model: onnx.ModelProto, linears: Sequence[Linear]) -> dict[str, int]:
    """Elements of the weight by MatMul node, for those linears that are FP4 in the graph."""
    elements: dict[str, int] = {}
    for linear in fp4_linears(model, linears)[0]:
        elements |= check_onnx_linears(model, [linear])
    return elements


def fp4_linears(
    model: onnx.ModelProto, linears: Sequence[Linear]
) -> tuple[list[Linear], list[str]]:
    """Linears that are FP4 in a graph, and what is wrong with the others."""
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
    name: str, metric: str, subject: Subject, covered: Iterable[str], reasons: Sequence[str]
) -> Check:
    expected: set[str] = set()
    if "dit" in subject.graphs:
        expected |= expected_sources(subject.dit_config)
    if "text_encoder" in subject.graphs:
        linears = expected_nodes(subject, "text_encoder")
        expected.update(source for linear in linears for source in linear.sources)
    missing = sorted(expected - set(covered))
    note = f"{len(expected)} linears expected"
    if missing:
        shown = "; ".join(reasons[:_SHOWN]) or ", ".join(missing[:_SHOWN])
        note = f"{note}; {shown}"
    value = float(len(missing)) if expected else None
    return Check(name=name, metric=metric, value=value, limit=0.0, note=note)
