"""The exported graph on ONNX Runtime against the torch module, with the FP4 activations off."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import torch

from fastwan.export.attentions import EXACT
from fastwan.export.dit_graph import build_dit_graph
from fastwan.quality.verify.modules import dit_module
from fastwan.quality.verify.quantizer import lowered_parts
from fastwan.quality.verify.report import Check
from fastwan.quality.verify.subject import Subject
from fastwan.runtime.model.dit import DiT
from fastwan.runtime.model.executor import Array

FP32_LIMIT = 1e-5
ROUNDING_MARGIN = 1.5
"""Limit in bf16 over the distance that rounding puts between bf16 and fp32.

Two computations that round at different places are each that far from the exact result and so
sqrt(2) times as far from each other; ours round at the same places but for fused operators.
"""
TIMESTEPS = (999, 599)
_TEXT_ROWS = 20
ATTENTION = "SageAttention3"


def relative_difference(expected: Array, got: Array) -> float:
    """|expected - got| / |expected| in the L2 norm; infinite where that means nothing."""
    if expected.shape != got.shape or not expected.size:
        return float("inf")
    a, b = expected.astype(np.float64), got.astype(np.float64)
    norm = float(np.linalg.norm(a))
    difference = float(np.linalg.norm(a - b)) / norm if norm else float("inf")
    return difference if np.isfinite(difference) else float("inf")


def random_inputs(subject: Subject, seed: int = 0) -> tuple[Array, Array]:
    """Latents and prompt embeddings of bf16 values, fp32; zero rows behind a short prompt."""
    generator = torch.Generator().manual_seed(seed)
    config = subject.dit_config
    latents = torch.randn(subject.check_shape.latents(config.in_channels), generator=generator)
    text = torch.zeros(1, config.text_length, config.text_dim)
    rows = min(_TEXT_ROWS, config.text_length)
    text[:, :rows] = torch.randn(1, rows, config.text_dim, generator=generator)
    return tuple(x.bfloat16().float().numpy() for x in (latents, text))  # type: ignore[return-value]


def check_unquantised(subject: Subject) -> Sequence[Check]:
    """`graph_fp32` and `graph_bf16`, each at two timesteps.

    The limit in bf16 is the distance between the module in bf16 and in fp32, what rounding itself
    makes of the model, times `ROUNDING_MARGIN`.
    """
    lowered = subject.lowered
    inputs = random_inputs(subject)
    exact = _module_outputs(subject, torch.float32, inputs)
    rounded = _module_outputs(subject, torch.bfloat16, inputs)
    note = f"{len(TIMESTEPS)} timesteps, {subject.at}"
    metric = "relative L2 difference to torch"

    def worst(left: Sequence[Array], right: Sequence[Array]) -> float:
        return max(relative_difference(a, b) for a, b in zip(left, right, strict=True))

    fp32 = worst(exact, graph_outputs(lowered.unquantised(rounding=False), inputs))
    bf16 = worst(rounded, graph_outputs(lowered.unquantised(rounding=True), inputs))
    rounding = min(relative_difference(a, b) for a, b in zip(exact, rounded, strict=True))
    limit = ROUNDING_MARGIN * rounding
    return (
        Check(
            name="graph_fp32",
            metric=f"{metric} in fp32, quantisers off",
            value=fp32,
            limit=FP32_LIMIT,
            note=note,
        ),
        Check(
            name="graph_bf16",
            metric=f"{metric} in bf16, quantisers off",
            value=bf16,
            limit=limit,
            note=note,
        ),
    )


def graph_outputs(dit: DiT[Array], inputs: tuple[Array, Array]) -> list[Array]:
    """Velocities of the graph at `TIMESTEPS`."""
    latents, text = inputs
    context = dit.prepare(text)
    return [dit.velocity(latents, timestep, context).astype(np.float32) for timestep in TIMESTEPS]


@torch.no_grad()
def _module_outputs(
    subject: Subject, dtype: torch.dtype, inputs: tuple[Array, Array]
) -> list[Array]:
    module = dit_module(subject, dtype, activations=False, attention=EXACT)
    latents, text = map(torch.from_numpy, inputs)
    times = (torch.tensor([float(timestep)]) for timestep in TIMESTEPS)
    return [module(latents, time, text).float().numpy() for time in times]


def check_attention_nodes(subject: Subject) -> Check:
    """Number and attributes of the attention nodes follow from the configuration."""
    config = subject.dit_config
    wanted: dict[str, float] = {
        "num_heads": config.num_heads,
        "num_tokens": subject.shape.num_tokens,
        "eps": float(np.float32(config.eps)),
        "softmax_scale": float(np.float32(config.head_dim**-0.5)),
        "exact_max": 0,
    }
    nodes = [
        node
        for node in subject.proto(subject.graph("dit").file).graph.node
        if (node.domain, node.op_type) == ("fastwan", ATTENTION)
    ]
    found = [{a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} for node in nodes]
    wrong = sum(attributes != wanted for attributes in found)
    wrong += abs(len(nodes) - config.num_layers)
    note = f"{len(nodes)} nodes"
    return Check(
        name="attention_nodes",
        metric="attention nodes that differ",
        value=float(wrong),
        limit=0.0,
        note=note,
    )


def check_cpu_reference(subject: Subject) -> Check:
    """The shipped CPU graphs compute what ``dit.onnx`` lowered now computes, bit for bit."""
    lowered = subject.lowered
    inputs = random_inputs(subject)
    shipped = graph_outputs(lowered.executors(lowered_parts(subject)), inputs)
    fresh = graph_outputs(lowered.executors(lowered.parts), inputs)
    differing = sum(int(np.count_nonzero(a != b)) for a, b in zip(shipped, fresh, strict=True))
    compared = sum(a.size for a in fresh)
    return Check(
        name="cpu_reference",
        metric="elements that differ from dit.onnx lowered again",
        value=float(differing) if compared else None,
        limit=0.0,
        label="emulated",
        note=f"{compared} elements, {subject.at}",
    )


def check_structure(subject: Subject) -> Check:
    """``dit.onnx`` is, node by node, the graph that the exporter makes of the configuration.

    Instead of running it: for a bundle whose graph is too long for a CPU.
    """
    fresh = build_dit_graph(subject.dit_config, subject.shape, subject.recipe)
    shipped = {str(node.name): node_signature(node) for node in subject.stored.graph}
    expected = {str(node.name): node_signature(node) for node in fresh.graph}
    differing = [
        name for name in expected.keys() | shipped.keys() if expected.get(name) != shipped.get(name)
    ]
    note = f"{len(expected)} nodes" + (f"; {min(differing)}" if differing else "")
    value = float(len(differing)) if expected else None
    return Check(
        name="graph_structure",
        metric="nodes that differ from the exporter's",
        value=value,
        limit=0.0,
        note=note,
    )


def node_signature(node: ir.Node) -> tuple[object, ...]:
    """Operator, attributes and wiring; small constants count by value, weights by name."""

    def operand(value: ir.Value | None) -> object:
        if value is None or not value.is_initializer():
            return None if value is None else value.name
        data = value.const_value
        if data is None or isinstance(data, ir.ExternalTensor):
            return value.name
        return value.name, data.tobytes()

    def attribute(value: object) -> object:
        # A file holds floats in fp32.
        return float(np.float32(value)) if isinstance(value, float) else str(value)

    attributes = tuple(sorted((name, attribute(a.value)) for name, a in node.attributes.items()))
    outputs = tuple(value.name for value in node.outputs)
    return node.domain, node.op_type, attributes, tuple(map(operand, node.inputs)), outputs
