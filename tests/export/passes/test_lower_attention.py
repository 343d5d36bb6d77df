"""`lower_attention`: three forms of the attention node in standard operators."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import pytest
import torch

from fastwan.export.attentions import EXACT, Form
from fastwan.export.attentions.native import SDPA
from fastwan.export.attentions.sage3 import FP4
from fastwan.export.passes.graphs import clone
from fastwan.export.passes.lower_attention import lower_attention
from fastwan.export.passes.lower_precision import lower_precision
from fastwan.plugins import reference

LENGTH, HEADS = 256, 2
WIDTH = 128 * HEADS
ATTRIBUTES: dict[str, Any] = {"num_heads": HEADS, "eps": 1e-6, "softmax_scale": 128**-0.5}
FORMS = [SDPA, FP4, EXACT]


@dataclass(frozen=True)
class Node:
    tokens: int
    model: ir.Model
    tensors: dict[str, torch.Tensor]
    lowered: dict[str, tuple[ir.Model, Any]] = field(default_factory=dict)

    def lower(self, kit: SimpleNamespace, form: Form) -> tuple[ir.Model, Any]:
        """The node in standard operators, and the same graph on ONNX Runtime; made once."""
        if form.name not in self.lowered:
            model = clone(self.model)
            assert lower_attention(model, form) == (model, True)
            self.lowered[form.name] = model, kit.session(lower_precision(clone(model))[0])
        return self.lowered[form.name]

    def run(self, kit: SimpleNamespace, form: Form, **changed: torch.Tensor) -> torch.Tensor:
        inputs = {name: value.float() for name, value in (self.tensors | changed).items()}
        out: torch.Tensor = self.lower(kit, form)[1](inputs)["out"]
        return out

    def exact(self) -> torch.Tensor:
        """The reference without roundings."""
        tensors: Any = {name: value.float() for name, value in self.tensors.items()}
        return reference.attention_node_fp32(**tensors, **ATTRIBUTES, num_tokens=self.tokens)


def make_node(kit: SimpleNamespace, tokens: int, kind: str = "bfloat16") -> Node:
    model = kit.graph(
        f"g ({kind}[1, {LENGTH}, {3 * WIDTH}] qkv, float[3] qkv_scale,"
        f"   {kind}[{3 * WIDTH}] qkv_bias, {kind}[{WIDTH}] q_norm, {kind}[{WIDTH}] k_norm,"
        f"   float[{LENGTH}, 64] rope_cos, float[{LENGTH}, 64] rope_sin)"
        f" => ({kind}[1, {LENGTH}, {WIDTH}] out) {{ out = fastwan.SageAttention3"
        f" <num_heads: int = {HEADS}, num_tokens: int = {tokens}, eps: float = 0.000001,"
        f"  softmax_scale: float = {128**-0.5}, exact_max: int = 0>"
        " (qkv, qkv_scale, qkv_bias, q_norm, k_norm, rope_cos, rope_sin) }"
    )
    generator = torch.Generator().manual_seed(tokens)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    angle = normal(LENGTH, 64) * 3
    tensors = {
        "qkv": (normal(1, LENGTH, 3 * WIDTH) * 2).bfloat16(),
        "qkv_scale": torch.tensor([0.5, 0.7, 1.1]),
        "qkv_bias": normal(3 * WIDTH).bfloat16(),
        "q_norm": (1 + 0.2 * normal(WIDTH)).bfloat16(),
        "k_norm": (1 + 0.2 * normal(WIDTH)).bfloat16(),
        "rope_cos": angle.cos(),
        "rope_sin": angle.sin(),
    }
    return Node(tokens, model, tensors)


@pytest.fixture(scope="module")
def node(kit: SimpleNamespace) -> Node:
    return make_node(kit, 180)


@pytest.fixture(scope="module")
def exact(node: Node) -> torch.Tensor:
    return node.exact()


def test_exact_is_the_fp32_reference(kit: SimpleNamespace, node: Node, exact: torch.Tensor) -> None:
    out = node.run(kit, EXACT)
    assert torch.equal(out, out.bfloat16().float())
    assert kit.relative(out, exact) < 3e-3  # one rounding to bf16
    assert torch.all(out[:, node.tokens :] == 0)


def test_fp4_is_the_reference_of_the_kernel(
    kit: SimpleNamespace, node: Node, exact: torch.Tensor
) -> None:
    out = node.run(kit, FP4)
    tensors: Any = node.tensors
    expected = reference.attention_node(**tensors, **ATTRIBUTES, num_tokens=node.tokens)
    # fp32 sums of another order move a few values over a rounding boundary of FP4.
    assert kit.relative(out, expected) < 5e-3
    assert kit.relative(out, exact) > 2e-2
    assert torch.all(out[:, node.tokens :] == 0)


def test_native_is_near_the_exact_one(
    kit: SimpleNamespace, node: Node, exact: torch.Tensor
) -> None:
    out, rows = node.run(kit, SDPA), slice(0, node.tokens)
    assert 1e-4 < kit.relative(out[:, rows], exact[:, rows]) < 1e-2
    lowered, _ = node.lower(kit, SDPA)
    (attention,) = (n for n in lowered.graph if n.op_type == "Attention")
    assert all(v is not None and v.dtype == ir.DataType.BFLOAT16 for v in attention.inputs[:3])


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_padding_rows_reach_nothing(kit: SimpleNamespace, node: Node, form: Form) -> None:
    expected = node.run(kit, form)
    qkv = node.tensors["qkv"].clone()
    qkv[:, node.tokens :] = 1e4
    rows = slice(0, node.tokens)
    assert torch.equal(node.run(kit, form, qkv=qkv)[:, rows], expected[:, rows])
    qkv[:, node.tokens - 1] = 1e4  # the last true row does
    assert not torch.equal(node.run(kit, form, qkv=qkv)[:, rows], expected[:, rows])


def test_native_without_padding(kit: SimpleNamespace) -> None:
    node = make_node(kit, LENGTH)
    assert 1e-4 < kit.relative(node.run(kit, SDPA), node.exact()) < 1e-2


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_every_input_counts(kit: SimpleNamespace, node: Node, form: Form) -> None:
    expected = node.run(kit, form)
    for name, value in node.tensors.items():
        changed = {name: -value if name == "rope_sin" else value * 1.5}
        assert not torch.equal(node.run(kit, form, **changed), expected), name


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_names_and_types_stay(kit: SimpleNamespace, node: Node, form: Form) -> None:
    model = node.lower(kit, form)[0]
    assert not [n for n in model.graph if n.domain == "fastwan"]
    assert [v.name for v in model.graph.inputs] == list(node.tensors)
    (out,) = model.graph.outputs
    assert (out.name, out.dtype, str(out.shape)) == (
        "out", ir.DataType.BFLOAT16, f"[1,{LENGTH},{WIDTH}]",
    )  # fmt: skip
    assert lower_attention(model, form)[1] is False


def test_node_of_an_fp32_graph_is_lowered_in_fp32(kit: SimpleNamespace) -> None:
    node = make_node(kit, 180, "float")
    model, _ = lower_attention(node.model, SDPA)
    assert lower_precision(model)[1] is False
    tensors = {name: value.float() for name, value in node.tensors.items()}
    out = kit.run(model, tensors)["out"]
    assert kit.relative(out[:, :180], node.exact()[:, :180]) < 1e-5
