"""What is lifted out of the tiny transformer computes what the nodes did that it replaces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from fastwan.export.glue_schemas import glue_schemas
from fastwan.export.passes.bare_gemm import SCALABLE, SCALED
from fastwan.export.passes.fusions import find_fusion
from fastwan.export.passes.split_dit import split_dit
from fastwan.export.recipes import NVFP4
from fastwan.onnx_guard import BundleGraph
from fastwan.plugins.glue_reference import (
    attention_to_keys,
    few_keys,
    gelu_quantize,
    norm_quantize,
    quantize,
    residual_norm,
    residual_norm_quantize,
)
from fastwan.plugins.lifted import KEY_BIAS, KEY_TILES
from fastwan.plugins.nvfp4 import PackedWeight, dequantize_weight
from fastwan.runtime.emulated.graph import TorchGraph

CPU = torch.device("cpu")
TOKENS = 20
Values = dict[str, Tensor]


@pytest.fixture(scope="module")
def original(exported: Any) -> BundleGraph:
    path = exported.folder / "dit.onnx"
    return BundleGraph(onnx.load(path, load_external_data=False), b"", path.parent, path.name)


@pytest.fixture(scope="module")
def lifted(exported: Any) -> ir.Model:
    return find_fusion("all").apply(exported.model())


def nodes_of(model: ir.Model, op_type: str) -> list[ir.Node]:
    found = [node for node in model.graph if node.op_type == op_type]
    assert found
    return found


def of_original(name: str) -> str:
    """The value that a vector of the modulation is made of."""
    return name.removeprefix("modulation/").removesuffix("/vector")


def inputs_of(node: ir.Node, original: BundleGraph) -> Values:
    """Random values for a node's inputs, by the names of the original graph; its own constants."""
    generator = torch.Generator().manual_seed(0)
    kinds = {ir.DataType.BFLOAT16: torch.bfloat16, ir.DataType.FLOAT: torch.float32}
    weights = {tensor.name: tensor for tensor in original.model.graph.initializer}
    values: Values = {}
    for value in node.inputs:
        assert value is not None
        if value.name in (KEY_BIAS, KEY_TILES):
            continue
        assert value.dtype is not None
        assert value.shape is not None
        shape, kind = list(value.shape.numpy()), kinds[value.dtype]
        if value.is_initializer():
            raw = bytearray(original.content(weights[str(value.name)]))
            values[str(value.name)] = torch.frombuffer(raw, dtype=kind).reshape(shape)
        else:
            values[of_original(str(value.name))] = torch.randn(shape, generator=generator).to(kind)
    return values


def expected(original: BundleGraph, node: ir.Node, values: Values) -> tuple[Tensor, ...]:
    """What the original nodes make: the hidden state, if there is one, and what is quantised."""
    made_by_it = [str(value.name) for value in node.outputs]
    names = [name.removesuffix("/fp4/codes") for name in made_by_it[:-1] or made_by_it]
    weights = {tensor.name for tensor in original.model.graph.initializer}
    given = {}
    for name, value in values.items():
        if name not in weights:  # a row of the modulation is [1, 1, C] there
            given[name] = value.reshape(1, 1, -1) if value.dim() == 1 else value
    shape = next(iter(values.values())).shape
    made = {name: torch.empty(shape, dtype=torch.bfloat16) for name in names}
    TorchGraph(original, list(given), names, CPU).run(given, made)
    return tuple(made.values())


def agree(found: tuple[Tensor, Tensor], activation: Tensor) -> None:
    """Codes and scales are those of an activation, but where sums in another order round apart."""
    one = torch.ones(())
    decoded = [
        dequantize_weight(PackedWeight(codes[0], scales[0], one))
        for codes, scales in (found, quantize(activation))
    ]
    assert decoded[1].norm() > 1
    apart = decoded[0] != decoded[1]
    assert apart.float().mean() < 0.02
    assert (decoded[0] - decoded[1]).norm() / decoded[1].norm() < 0.02


def attributes_of(node: ir.Node) -> dict[str, Any]:
    return {name: attribute.value for name, attribute in node.attributes.items()}


def test_gelu(original: BundleGraph, lifted: ir.Model) -> None:
    for node in nodes_of(lifted, "GeluQuantize"):
        values = inputs_of(node, original)
        (activation,) = expected(original, node, values)
        agree(gelu_quantize(*values.values()), activation)


def test_residual_and_norm(original: BundleGraph, lifted: ir.Model, tiny: Any) -> None:
    nodes = nodes_of(lifted, "ResidualNormQuantize")
    assert len(nodes) == 3 * tiny.config.num_layers - 1  # the first norm has no residual before it
    forms = set()
    for node in nodes:
        attributes, values = attributes_of(node), inputs_of(node, original)
        hidden, activation = expected(original, node, values)
        y, bias, before, *rest = values.values()
        gate = rest.pop(0) if len(rest) == 3 else None
        made, *operand = residual_norm_quantize(
            y, bias, before, gate, *rest, eps=attributes["eps"], add_one=bool(attributes["add_one"])
        )
        assert torch.equal(made, hidden)
        agree((operand[0], operand[1]), activation)
        forms.add((gate is None, attributes["add_one"]))
    assert forms == {(False, 0), (True, 1), (False, 1)}


def test_the_first_and_the_last_norm(original: BundleGraph, lifted: ir.Model) -> None:
    (first,) = nodes_of(lifted, "NormQuantize")
    values = inputs_of(first, original)
    (activation,) = expected(original, first, values)
    agree(norm_quantize(*values.values(), **attributes_of(first)), activation)
    (last,) = nodes_of(lifted, "ResidualNorm")
    values = inputs_of(last, original)
    (normed,) = expected(original, last, values)
    found = residual_norm(*values.values(), **attributes_of(last))
    assert normed.float().norm() > 1
    assert (found.float() - normed.float()).norm() / normed.float().norm() < 2**-9


@pytest.mark.parametrize(
    ("shift", "fits"), [(0.0, True), (3.0, False)], ids=["its bias", "another"]
)
def test_few_keys_stand_for_all(
    original: BundleGraph, lifted: ir.Model, shift: float, fits: bool
) -> None:
    """`shift` moves the one key that stands for the rows behind the prompt."""
    for node in nodes_of(lifted, "CrossAttention"):
        values = inputs_of(node, original)
        k, v = list(values.values())[3:]
        k[:, TOKENS:], v[:, :, TOKENS:] = k[:, TOKENS : TOKENS + 1], v[:, :, TOKENS : TOKENS + 1]
        rows = k.shape[1]
        bias = torch.full((rows,), -torch.inf)
        bias[:TOKENS], bias[TOKENS] = 0, torch.tensor(float(rows - TOKENS)).log() + shift
        (wanted,) = expected(original, node, values)
        one_tile = torch.tensor([1], dtype=torch.int32)
        found = attention_to_keys(*values.values(), bias, one_tile, **attributes_of(node))
        error = (found.float() - wanted.float()).norm() / wanted.float().norm()
        assert (error < 0.01) == fits


Count = Callable[[int, int], tuple[Tensor, int]]


@pytest.fixture(scope="module")
def count(lifted: ir.Model) -> Count:
    """(key_bias, key_tiles) of a prompt of some tokens, of which some are zero."""
    text_kv = split_dit(lifted)["text_kv"]
    text = text_kv.graph.inputs[0]
    model = ir.to_proto(text_kv)
    kept = {KEY_BIAS, KEY_TILES}
    nodes = []
    for node in reversed(model.graph.node):
        if kept & set(node.output):
            kept |= set(node.input)
            nodes.insert(0, node)
    used = [tensor for tensor in model.graph.initializer if tensor.name in kept]
    outputs = [value for value in model.graph.output if value.name in (KEY_BIAS, KEY_TILES)]
    graph = onnx.helper.make_graph(nodes, "keys", list(model.graph.input), outputs, used)
    opsets = [onnx.helper.make_opsetid("", 23)]
    evaluator = onnx.reference.ReferenceEvaluator(
        onnx.helper.make_model(graph, opset_imports=opsets, ir_version=11)
    )

    def run(tokens: int, zeros: int) -> tuple[Tensor, int]:
        assert text.shape is not None
        assert text.dtype is not None
        rows = torch.ones(tuple(text.shape.numpy()))
        rows[:, :zeros] = 0
        rows[:, tokens:] = 0
        named = {text.name: rows.numpy().astype(text.dtype.numpy())}
        bias, tiles = evaluator.run([KEY_BIAS, KEY_TILES], named)
        return torch.from_numpy(bias.copy()), int(tiles[0])

    return run


@pytest.mark.parametrize(
    ("tokens", "tiles"), [(0, 1), (1, 1), (63, 1), (64, 2), (128, 3), (511, 8), (512, 8)]
)
def test_the_keys_of_a_prompt_are_counted(count: Count, tokens: int, tiles: int) -> None:
    bias, found = count(tokens, 0)
    rows = len(bias)
    wanted = torch.full((rows,), -torch.inf)
    wanted[:tokens] = 0
    if tokens < rows:
        wanted[tokens] = torch.tensor(float(rows - tokens)).log()
    assert found == tiles
    assert torch.equal(bias == 0, wanted == 0) or tokens == rows - 1  # log(1) is 0, too
    assert torch.allclose(bias, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("tokens", "zeros"), [(0, 0), (1, 0), (64, 0), (130, 9), (511, 0), (512, 3)]
)
def test_the_nodes_count_keys_as_the_reference_does(count: Count, tokens: int, zeros: int) -> None:
    bias, tiles = count(tokens, zeros)
    text = torch.ones(1, len(bias), 4)
    text[:, :zeros] = 0
    text[:, tokens:] = 0
    expected, expected_tiles = few_keys(text)
    assert expected.dtype == torch.float32
    assert expected_tiles.dtype == torch.int32
    assert tiles == int(expected_tiles)
    assert torch.equal(bias == -torch.inf, expected == -torch.inf)
    assert torch.allclose(bias, expected, rtol=1e-6, atol=0)


def test_a_token_of_zeros_inside_a_prompt_counts(count: Count) -> None:
    assert torch.equal(count(20, 5)[0], count(20, 0)[0])


def test_no_engine_of_a_step_keeps_a_quantiser(lifted: ir.Model) -> None:
    parts = split_dit(lifted)
    assert len(nodes_of(parts["dit"], "MatMul")) > 1
    assert "TRT_FP4DynamicQuantize" not in {node.op_type for node in parts["dit"].graph}
    assert nodes_of(lifted, "Quantize")[0].inputs[0].producer().op_type == "SageAttention3"  # type: ignore[union-attr]


def test_gates_scales_and_shifts_are_tables_of_the_timestep(lifted: ir.Model, tiny: Any) -> None:
    parts = split_dit(lifted)
    handed = {str(value.name) for value in parts["time_tables"].graph.outputs}
    vectors = {name for name in handed if name.startswith("modulation/")}
    # All six rows of a block, and two of the head.
    assert len(vectors) == 6 * tiny.config.num_layers + 2
    assert vectors <= {str(value.name) for value in parts["dit"].graph.inputs}


@pytest.mark.parametrize("scaled", [False, True])
def test_lifted_nodes_keep_to_their_schemas(exported: Any, scaled: bool) -> None:
    lifted = find_fusion("all").apply(exported.model())
    assert not scaled or NVFP4().scale_behind(lifted)
    nodes = [node for node in lifted.graph if node.op_type in {s.name for s in glue_schemas()}]
    assert {node.op_type for node in nodes} == {schema.name for schema in glue_schemas()}
    assert {node.op_type for node in nodes if SCALED in node.attributes} == (
        set(SCALABLE) if scaled else set()
    )
    for node in nodes:
        schema = onnx.defs.get_schema(node.op_type, 1, "fastwan")
        required = {name for name, each in schema.attributes.items() if each.required}
        assert required <= set(node.attributes) <= set(schema.attributes)
        assert set(node.attributes) - required <= {SCALED}
        assert schema.min_input <= len(node.inputs) <= schema.max_input
        assert len(node.outputs) == schema.max_output
        pairs = [*zip(node.inputs, schema.inputs, strict=False)]
        pairs += [*zip(node.outputs, schema.outputs, strict=True)]
        for value, parameter in pairs:
            assert value is not None
            assert value.dtype is not None
            assert parameter.type_str == f"tensor({value.dtype.name.lower()})"
