"""`cut_at_regions` and `cut_every` on a small graph and on the transformer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from fastwan.export.attentions import EXACT
from fastwan.export.passes.cut_at_blocks import cut_every
from fastwan.export.passes.cut_at_regions import Cut, cut_at_regions
from fastwan.export.passes.graphs import clone
from fastwan.export.passes.lower_for_onnxruntime import lower_for_onnxruntime
from fastwan.export.passes.split_dit import split_dit

Arrays = dict[str, np.ndarray[Any, Any]]


class Twice(OpRun):
    """A node of the domain whose result is easy to predict."""

    op_domain = "fastwan"

    def _run(self, x: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any]]:
        return ((x.astype(np.float32) * 2).astype(x.dtype),)


def graph(kit: SimpleNamespace) -> ir.Model:
    """Two regions, the first of two nodes.

    `wide` is the fp32 copy of `a`; `m` and `n` are small; `corner` is a small slice of a large
    value; `c` follows from a weight alone. All are read on both sides of a cut.
    """
    model: ir.Model = kit.graph(
        """g (bfloat16[32, 16] x, float[1, 16] t, float[32, 16] w, int64[1] zero, int64[1] one)
             => (float[32, 16] y)
           <bfloat16[32, 16] c, bfloat16[32, 16] a, float[32, 16] wide, float[1, 16] m,
            float[1, 16] n, float[32, 16] wall, float[1, 16] corner,
            bfloat16[32, 16] r0, bfloat16[32, 16] r1, float[32, 16] b, float[32, 16] b2,
            float[32, 16] b3, bfloat16[32, 16] d, bfloat16[32, 16] d2, bfloat16[32, 16] r2,
            float[32, 16] e, float[32, 16] f, float[32, 16] h, float[32, 16] i>
        {
            c = Cast <to: int = 16> (w)
            a = Add (x, c)
            wide = Cast <to: int = 1> (a)
            m = Mul (t, t)
            n = Add (t, m)
            wall = Relu (wide)
            corner = Slice (wall, zero, one, zero)
            r0 = fastwan.Twice (a)
            r1 = fastwan.Twice (r0)
            b = Cast <to: int = 1> (r1)
            b2 = Mul (b, wide)
            b3 = Add (b2, m)
            d = Cast <to: int = 16> (b3)
            d2 = Add (d, c)
            r2 = fastwan.Twice (d2)
            e = Cast <to: int = 1> (r2)
            f = Add (e, wide)
            h = Add (f, m)
            i = Add (h, corner)
            y = Add (i, n)
        }""",
        w=ir.tensor(np.arange(512, dtype=np.float32).reshape(32, 16) % 7),
        zero=ir.tensor(np.array([0])),
        one=ir.tensor(np.array([1])),
    )
    return model


def names(values: Any) -> set[str]:
    return {str(value.name) for value in values}


def evaluate(model: ir.Model, values: Arrays) -> Arrays:
    evaluator = ReferenceEvaluator(ir.to_proto(model), new_ops=[Twice])
    outputs = [str(value.name) for value in model.graph.outputs]
    feeds = {str(value.name): values[str(value.name)] for value in model.graph.inputs}
    return dict(zip(outputs, evaluator.run(outputs, feeds), strict=True))


def evaluate_cut(cut: Cut, values: Arrays) -> Arrays:
    """Segments and regions in turn, as the runtime plays them."""
    for index, segment in enumerate(cut.segments):
        values = values | evaluate(segment, values)
        if index < len(cut.regions):
            values = values | evaluate(cut.regions[index].model, values)
    return values


def small_inputs() -> Arrays:
    generator = np.random.default_rng(0)
    x = generator.integers(-3, 4, (32, 16)).astype(ml_dtypes.bfloat16)
    return {"x": x, "t": generator.integers(-3, 4, (1, 16)).astype(np.float32)}


def test_segments_and_regions_in_turn_are_the_whole(kit: SimpleNamespace) -> None:
    model, values = graph(kit), small_inputs()
    cut = cut_at_regions(model)
    expected = evaluate(model, values)["y"]
    assert np.abs(expected).max() > 10
    assert np.array_equal(evaluate_cut(cut, values)["y"], expected)


def test_neighbours_form_one_region(kit: SimpleNamespace) -> None:
    cut = cut_at_regions(graph(kit))
    assert [region.name for region in cut.regions] == ["region_00", "region_01"]
    assert [segment.graph.name for segment in cut.segments] == [
        "segment_00", "segment_01", "segment_02",
    ]  # fmt: skip
    first, second = (region.model.graph for region in cut.regions)
    assert [node.outputs[0].name for node in first] == ["r0", "r1"]
    assert (names(first.inputs), names(first.outputs)) == ({"a"}, {"r1"})
    assert (names(second.inputs), names(second.outputs)) == ({"d2"}, {"r2"})
    assert not [n for segment in cut.segments for n in segment.graph if n.domain == "fastwan"]


def test_what_is_handed_over(kit: SimpleNamespace) -> None:
    first, second, third = (segment.graph for segment in cut_at_regions(graph(kit)).segments)
    # The bf16 `a` and not its fp32 copy; the slice and not what it is cut from; no constant, and
    # no small value that a graph input makes.
    assert names(first.outputs) == {"a", "corner"}
    assert names(second.inputs) == {"r1", "a", "t"}
    assert names(second.outputs) == {"d2"}
    assert names(third.inputs) == {"r2", "a", "t", "corner"}
    assert names(third.outputs) == {"y"}
    for segment, made in ((second, {"wide", "m", "c"}), (third, {"wide", "m", "n"})):
        assert made <= {str(node.outputs[0].name) for node in segment}


def test_graph_without_regions_is_one_segment(kit: SimpleNamespace) -> None:
    model = kit.graph("g (float[2] x) => (float[2] y) { h = Relu (x) y = Neg (h) }")
    cut = cut_at_regions(model)
    assert cut.regions == ()
    assert [[node.op_type for node in s.graph] for s in cut.segments] == [["Relu", "Neg"]]


@pytest.mark.parametrize("last", ["fastwan.Twice", "Neg"])
def test_graph_may_end_with_a_region(kit: SimpleNamespace, last: str) -> None:
    model = kit.graph(
        f"g (float[8] x) => (float[8] y) {{ h = Relu (x) r = fastwan.Twice (h) y = {last} (r) }}"
    )
    cut = cut_at_regions(model)
    assert (len(cut.segments), len(cut.regions)) == ((1, 1) if last != "Neg" else (2, 1))
    values = {"x": np.arange(-4, 4, dtype=np.float32)}
    assert np.array_equal(evaluate_cut(cut, values)["y"], evaluate(model, values)["y"])


def test_model_is_left_unchanged(kit: SimpleNamespace) -> None:
    model = graph(kit)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    cut_at_regions(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def _lowered(model: ir.Model) -> ir.Model:
    return lower_for_onnxruntime(
        clone(model), quantize_activations=False, attention=EXACT, rounding=False
    )[0]


def test_transformer_in_segments_is_the_whole(exported: Any, tiny: Any, kit: Any) -> None:
    time, text, dit = split_dit(exported.model()).values()
    cut = cut_at_regions(dit)
    assert len(cut.segments) == tiny.config.num_layers + 1
    assert len(cut.regions) == tiny.config.num_layers
    inputs = kit.inputs(tiny.config, tiny.shape)
    values = {"latents": inputs.latents}
    values |= kit.run(_lowered(time), {"timestep": inputs.timestep})
    values |= kit.run(_lowered(text), {"encoder_hidden_states": inputs.text})
    expected = kit.run(_lowered(dit), values)["velocity"]
    for index, segment in enumerate(cut.segments):
        if index < len(cut.regions):
            # qkv and the residual stream; a block makes its modulation of the tables it reads.
            assert len(segment.graph.outputs) == 2
            assert "timestep_proj" in names(segment.graph.inputs)
        values |= kit.run(_lowered(segment), values)
        if index < len(cut.regions):
            values |= kit.run(_lowered(cut.regions[index].model), values)
    assert kit.relative(values["velocity"], expected) < 1e-6
    assert torch.isfinite(expected).all()


PRODUCT = "blocks.0.ffn.fc2/MatMul"


def _behind(model: ir.Model) -> set[str | None]:
    """Nodes that read the last product of the first block."""
    (product,) = (node for node in model.graph if node.name == PRODUCT)
    return {use.node.name for use in product.outputs[0].uses()}


def test_blocks_are_cut_behind_their_last_product(exported: Any, tiny: Any, kit: Any) -> None:
    """What follows it is one kernel with the next block's norm, where one engine has both."""
    time, text, whole = split_dit(exported.model()).values()
    pieces = cut_every(whole, 1)
    assert len(pieces) == tiny.config.num_layers > 1
    assert PRODUCT in names(pieces[0].graph)
    assert _behind(whole)
    assert _behind(whole) <= names(pieces[1].graph)
    inputs = kit.inputs(tiny.config, tiny.shape)
    values = {"latents": inputs.latents}
    values |= kit.run(_lowered(time), {"timestep": inputs.timestep})
    values |= kit.run(_lowered(text), {"encoder_hidden_states": inputs.text})
    expected = kit.run(_lowered(whole), values)["velocity"]
    for piece in pieces:
        values |= kit.run(_lowered(piece), values)
    assert kit.relative(values["velocity"], expected) < 1e-6


def test_what_follows_a_product_that_is_not_quantised_stays_with_it(exported: Any) -> None:
    """The builder makes it a part of the GEMM."""
    whole = split_dit(exported.model())["dit"]
    (product,) = (node for node in whole.graph if node.name == PRODUCT)
    plain = ir.Value(name="plain", type=product.inputs[1].type, shape=product.inputs[1].shape)
    plain.const_value = ir.tensor(np.zeros(plain.shape.numpy(), ml_dtypes.bfloat16))
    whole.graph.initializers.add(plain)
    product.replace_input_with(1, plain)
    assert _behind(whole) <= names(cut_every(whole, 1)[0].graph)
