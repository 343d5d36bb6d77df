"""Keys and values of the prompt in several engines: the same values, no weight twice."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from fastwan.config import ACTIVATIONS
from fastwan.export.dit_graph import build_dit_graph
from fastwan.export.passes.cut_text import cut_text
from fastwan.export.passes.fusions import find_fusion
from fastwan.export.passes.graphs import nbytes
from fastwan.export.passes.lower_fp8 import linears
from fastwan.export.passes.split_dit import split_dit
from fastwan.export.recipes import FP8
from fastwan.onnx_guard import BundleGraph
from fastwan.plugins.lifted import TEXT
from fastwan.runtime.emulated.graph import TorchGraph

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["none", "all"])
def text(request: pytest.FixtureRequest, exported: Any) -> ir.Model:
    return split_dit(find_fusion(request.param).apply(exported.model()))["text_kv"]


@pytest.fixture(scope="module")
def pieces(text: ir.Model) -> tuple[ir.Model, ...]:
    return cut_text(text, max_results=1)


def run(model: ir.Model, values: dict[str, Tensor], exported: Any) -> dict[str, Tensor]:
    """What a graph makes of the values that it reads."""
    graph = BundleGraph(ir.to_proto(model), b"", exported.folder, "dit.onnx")
    inputs = [str(value.name) for value in model.graph.inputs]
    made = {str(value.name): empty(value) for value in model.graph.outputs}
    TorchGraph(graph, inputs, list(made), CPU).run({name: values[name] for name in inputs}, made)
    return made


def empty(value: ir.Value) -> Tensor:
    assert value.shape is not None
    assert value.dtype is not None
    kinds = {"BFLOAT16": torch.bfloat16, "FLOAT": torch.float32, "INT32": torch.int32}
    return torch.empty(tuple(value.shape.numpy()), dtype=kinds[value.dtype.name])


def test_a_small_one_stays_whole(text: ir.Model) -> None:
    assert cut_text(text) == (text,)


def test_pieces_make_what_the_whole_does(
    text: ir.Model, pieces: tuple[ir.Model, ...], exported: Any, tiny: Any
) -> None:
    assert len(pieces) == tiny.config.num_layers
    shape = text.graph.inputs[0].shape
    assert shape is not None
    generator = torch.Generator().manual_seed(0)
    given = {TEXT: torch.randn(tuple(shape.numpy()), generator=generator).to(torch.bfloat16)}
    expected = run(text, given, exported)
    values = dict(given)
    for piece in pieces:
        values |= run(piece, values, exported)
    for name, value in expected.items():
        assert torch.equal(values[name], value), name
    assert max(float(value.abs().amax()) for value in expected.values() if value.ndim > 2) > 0


def test_only_the_context_is_handed_on_and_no_weight_is_held_twice(
    text: ir.Model, pieces: tuple[ir.Model, ...]
) -> None:
    own = {str(value.name) for value in text.graph.outputs}
    made = [str(value.name) for piece in pieces for value in piece.graph.outputs]
    assert len(set(made)) == len(made)
    assert own < set(made)
    (context,) = set(made) - own
    for piece in pieces[1:]:
        assert [value.name for value in piece.graph.inputs] == [context]
    weights = [
        name
        for piece in pieces
        for name, value in piece.graph.initializers.items()
        if nbytes(value) > 64
    ]
    assert len(weights) > len(pieces)
    assert len(set(weights)) == len(weights)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_piece_quantises_for_its_own_linears(tiny: Any, activation: str) -> None:
    """FP8 quantises by other nodes than NVFP4, and computes a scale before."""
    scales = {
        f"text_kv.{i}.{part}": 0.25
        for i in range(tiny.config.num_layers)
        for part in ("to_k", "to_v")
    }
    recipe = FP8().with_activation(activation, scales)
    whole = split_dit(build_dit_graph(tiny.config, tiny.shape, recipe))["text_kv"]
    pieces = cut_text(whole, max_results=1)
    assert len(pieces) == tiny.config.num_layers
    held = []
    for piece in pieces:
        for linear in linears(piece):
            assert linear.matmul.name is not None
            held.append(linear.matmul.name.removesuffix("/MatMul"))
    assert sorted(held) == sorted(scales)
