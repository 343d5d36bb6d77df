"""`WanDiT` against diffusers, and its composed graph against a trace of the whole."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from fastwan.config import DiTConfig, VideoShape
from fastwan.export import ops
from fastwan.export.attentions import EXACT
from fastwan.export.dit_graph import build_dit_graph
from fastwan.export.linear_names import name_linears
from fastwan.export.models import wan
from fastwan.export.models.layers import rope_tables, timestep_frequencies
from fastwan.export.recipes import BF16, NVFP4
from fastwan.export.tracing import trace
from fastwan.export.weights import load_module


@pytest.fixture(scope="module")
def original(tiny: Any) -> Any:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    config = json.loads((tiny.folder / "transformer/config.json").read_text())
    model = diffusers.WanTransformer3DModel.from_config(config)
    model.load_state_dict({name: tiny.weights.read(name) for name in tiny.weights.names()})
    return model.float().eval()


SHAPES = [
    pytest.param(VideoShape(96, 160, 9), id="180 tokens"),
    pytest.param(VideoShape(64, 128, 13), id="128 tokens"),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_module_equals_diffusers(
    tiny: Any, original: Any, kit: SimpleNamespace, shape: VideoShape
) -> None:
    inputs = kit.inputs(tiny.config, shape)
    module = load_module(tiny.weights, tiny.config, shape, BF16(), torch.float32)
    with torch.no_grad():
        expected = original(inputs.latents, inputs.timestep, inputs.text).sample
        velocity = module(inputs.latents, inputs.timestep, inputs.text)
        later = module(inputs.latents, inputs.timestep - 1, inputs.text)
    assert velocity.shape == expected.shape == shape.latents()
    assert kit.relative(velocity, expected) < 1e-5
    assert kit.relative(later, expected) > 1e-5  # so fine a difference is seen


@pytest.mark.parametrize("shape", SHAPES)
def test_rope_tables_are_those_of_diffusers(original: Any, shape: VideoShape) -> None:
    latents = torch.empty(shape.latents())
    theirs = [table.reshape(shape.num_tokens, 128) for table in original.rope(latents)]
    for table, expected in zip(rope_tables(shape), theirs, strict=True):
        assert table.shape == (shape.padded_tokens, 64)
        assert table.dtype == torch.float32
        # diffusers holds each value twice, for the even and the odd channel of a pair.
        assert torch.equal(table[: shape.num_tokens], expected[:, 0::2].float())
        assert torch.equal(expected[:, 0::2], expected[:, 1::2])
    cos, sin = rope_tables(shape)
    assert torch.all(cos[shape.num_tokens :] == 1)
    assert torch.all(sin[shape.num_tokens :] == 0)


@pytest.mark.parametrize("timestep", [0.0, 1.0, 522.0, 857.0, 999.0])
def test_timestep_embedding_is_that_of_diffusers(original: Any, timestep: float) -> None:
    angle = torch.tensor([timestep])[:, None] * timestep_frequencies(256)
    embedding = torch.cat([angle.cos(), angle.sin()], dim=-1)
    expected = original.condition_embedder.timesteps_proj(torch.tensor([timestep]))
    # Its frequencies are off by one unit in the last place here and there, as its CPU's exp is.
    assert torch.allclose(embedding, expected, rtol=0, atol=timestep * 2**-23)
    assert (embedding == expected).float().mean() > 0.9


def test_frequencies_do_not_depend_on_the_machine() -> None:
    # A bundle's digests are compared on another CPU, whose fp32 exp has another last bit.
    exponents = -math.log(10000.0) * torch.arange(128, dtype=torch.float32) / 128
    exact = [float(Decimal(each).exp()) for each in exponents.tolist()]
    expected = torch.tensor(exact, dtype=torch.float64).float()
    assert torch.equal(timestep_frequencies(256), expected)
    assert torch.allclose(expected, torch.exp(exponents), rtol=2e-7, atol=0)


def test_bf16_module_is_near_the_fp32_one_and_unlike_it(tiny: Any, kit: SimpleNamespace) -> None:
    inputs = kit.inputs(tiny.config, tiny.shape)
    arguments = (inputs.latents, inputs.timestep, inputs.text)
    exact = load_module(tiny.weights, tiny.config, tiny.shape, BF16(), torch.float32)(*arguments)
    module = load_module(tiny.weights, tiny.config, tiny.shape, BF16())
    plain = module.set_quantizers(activations=False, attention=EXACT)(*arguments)
    assert plain.dtype == torch.bfloat16
    assert 1e-4 < kit.relative(plain, exact) < 3e-2
    fp4 = module.set_quantizers(activations=True, attention=None)(*arguments)
    assert kit.relative(fp4, exact) > kit.relative(plain, exact)


class _Whole(wan.WanDiT):
    """All blocks in one trace, with the rotary tables as inputs."""

    def forward(  # type: ignore[override]
        self, latents: Tensor, timestep: Tensor, text: Tensor, cos: Tensor, sin: Tensor
    ) -> Tensor:
        hidden, temb, timestep_proj = self.embed(latents, timestep)
        context = self.text_embed(text)
        for text_kv, block in zip(self.text_kv, self.blocks, strict=True):
            k, v = text_kv(context)
            hidden = block(hidden, timestep_proj, k, v, cos, sin)
        out: Tensor = self.head(hidden, temb)
        return out


def _fingerprints(model: ir.Model) -> Counter[str]:
    """A hash for each node over its operator, attributes and, recursively, what it reads."""
    known: dict[ir.Value, str] = {value: f"input {value.name}" for value in model.graph.inputs}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            known[value] = f"input {name}"
        else:
            digest = hashlib.sha256(tensor.tobytes()).hexdigest()
            known[value] = f"constant {tensor.dtype} {tensor.shape} {digest}"
    found: Counter[str] = Counter()
    for node in model.graph:
        attributes = sorted(f"{name}={a.value}" for name, a in node.attributes.items())
        reads = [None if value is None else known[value] for value in node.inputs]
        text = f"{node.domain} {node.op_type} {attributes} {reads}"
        digest = hashlib.sha256(text.encode()).hexdigest()
        found[f"{node.op_type} {digest}"] += 1
        for index, value in enumerate(node.outputs):
            known[value] = f"{digest} {index} {value.dtype} {value.shape}"
    found.update(f"output {known[value]}" for value in model.graph.outputs)
    return found


def test_one_repeated_block_is_the_trace_of_all() -> None:
    """Same operators with the same attributes, types and connections; only node names differ."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    config = DiTConfig(num_layers=2, num_heads=1, ffn_dim=64, text_dim=32, text_length=16)
    shape, recipe = VideoShape(48, 48, 5), NVFP4()
    with FakeTensorMode(allow_non_fake_inputs=True):
        bf16 = torch.bfloat16
        tables = torch.empty(shape.padded_tokens, 64), torch.empty(shape.padded_tokens, 64)
        text = torch.empty(1, config.text_length, config.text_dim, dtype=bf16)
        whole = trace(
            _Whole(config, shape, recipe).eval(),
            (torch.empty(shape.latents(), dtype=bf16), torch.empty(1), text, *tables),
            name="whole",
            inputs=["latents", "timestep", "encoder_hidden_states", "rope_cos", "rope_sin"],
            outputs=["velocity"],
            translations=ops.translations() | recipe.translations(),
        )
    name_linears(whole.graph, recipe)
    recipe.expand(whole)
    composed = build_dit_graph(config, shape, recipe)
    assert _fingerprints(composed) == _fingerprints(whole)
    values = {value for node in composed.graph for value in node.outputs}
    assert len({value.name for value in values}) == len(values)
    assert len({node.name for node in composed.graph}) == len(composed.graph)


def test_fingerprints_see_a_swapped_operand(kit: SimpleNamespace) -> None:
    def model(first: str, second: str) -> ir.Model:
        graph: ir.Model = kit.graph(
            f"g (float[2] a, float[2] b) => (float[2] y){{ c = Neg(a) y = Sub({first}, {second}) }}"
        )
        return graph

    assert _fingerprints(model("c", "b")) == _fingerprints(model("c", "b"))
    assert _fingerprints(model("c", "b")) != _fingerprints(model("b", "c"))
