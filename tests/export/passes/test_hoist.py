"""`hoist` on small graphs, `split_dit` on the transformer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from fastwan.engines.plan import plan_dit
from fastwan.errors import BadInput
from fastwan.export.attentions import Attention, native
from fastwan.export.attentions.native import Native
from fastwan.export.attentions.sage3 import Sage3
from fastwan.export.dit_graph import targeted_linears
from fastwan.export.passes.graphs import constants
from fastwan.export.passes.hoist import hoist
from fastwan.export.passes.split_dit import split_dit
from fastwan.export.recipes import NVFP4

TIME_WEIGHTS = {f"embed.time_{name}.weight" for name in ("linear_1", "linear_2", "proj")}


def graph_of_two(kit: SimpleNamespace) -> ir.Model:
    """k follows from the input `text` and a constant, y from it, the latents and that constant."""
    model: ir.Model = kit.graph(
        """g (float[2, 4] latents, float[2, 4] text, float16[4] w)
             => (float[2, 4] y) <float[2, 4] e, float[2, 4] k, float[2, 4] shifted>
        {
            wide = Cast <to: int = 1> (w)
            twice = Add (wide, wide)
            moved = Sub (latents, twice)
            e = Mul (text, twice)
            k = Relu (e)
            shifted = Add (k, twice)
            z = Mul (moved, shifted)
            y = Add (z, e)
        }""",
        w=ir.tensor(np.array([1, -2, 3, 0.5], np.float16)),
    )
    return model


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def names(values: Any) -> set[str]:
    return {str(value.name) for value in values}


@pytest.mark.parametrize("home", ["", "blocks.3.", "head."])
def test_only_what_the_input_decides_is_hoisted(kit: SimpleNamespace, home: str) -> None:
    model = graph_of_two(kit)
    # The add of a constant to a hoisted value: a block's modulation, where it stands in a block.
    add = next(node for node in model.graph if node.outputs[0].name == "shifted")
    add.name = f"{home}shifted"
    before = [node.name for node in model.graph]
    first, rest = hoist(model, "text", "apart")
    assert (first.graph.name, rest.graph.name) == ("apart", "g")
    assert names(first.graph.inputs) == {"text"}
    crossing = {"e", "k"} if home else {"e", "shifted"}
    assert names(first.graph.outputs) == crossing
    assert names(rest.graph.inputs) == {"latents", *crossing}
    assert names(rest.graph.outputs) == {"y"}
    # The constant chain is in both, everything else in one.
    assert operators(first) == ["Cast", "Add", "Mul", "Relu"] + ["Add"] * (not home)
    assert operators(rest) == ["Cast", "Add", "Sub"] + ["Add"] * bool(home) + ["Mul", "Add"]
    assert [node.name for node in model.graph] == before
    inputs = {
        name: torch.randn(2, 4, generator=torch.Generator().manual_seed(index))
        for index, name in enumerate(("latents", "text"))
    }
    expected = kit.run(model, inputs)["y"]
    values = inputs | kit.run(first, inputs)
    assert torch.equal(kit.run(rest, values)["y"], expected)


@pytest.mark.parametrize("name", ["text", "prompt"])
def test_a_graph_without_the_input_is_refused(kit: SimpleNamespace, name: str) -> None:
    model = graph_of_two(kit)
    if name == "text":
        hoist(model, name, "apart")
    else:
        with pytest.raises(BadInput, match=r"graph lacks an input \(prompt\)"):
            hoist(model, name, "apart")


@pytest.mark.parametrize("read", ["e", "text"])
def test_an_input_that_the_rest_reads_too_is_refused(kit: SimpleNamespace, read: str) -> None:
    model = graph_of_two(kit)
    last = list(model.graph)[-1]
    (text,) = (value for value in model.graph.inputs if value.name == "text")
    if read == "e":
        hoist(model, "text", "apart")
    else:
        last.replace_input_with(1, text)
        with pytest.raises(BadInput, match=r"input is read beside .* \(text\)"):
            hoist(model, "text", "apart")


def test_the_transformer_by_how_often_its_parts_run(exported: Any, tiny: Any) -> None:
    model = exported.model()
    parts = split_dit(model)
    assert list(parts) == ["time_tables", "text_kv", "dit"]
    assert [part.graph.name for part in parts.values()] == list(parts)
    time, text, dit = (part.graph for part in parts.values())
    keys = {f"blocks.{i}.attn2.{part}" for i in range(tiny.config.num_layers) for part in "kv"}
    assert (names(time.inputs), names(time.outputs)) == ({"timestep"}, {"temb", "timestep_proj"})
    assert (names(text.inputs), names(text.outputs)) == ({"encoder_hidden_states"}, keys)
    assert names(dit.inputs) == {"latents", "temb", "timestep_proj", *keys}
    # The time MLP is in one part alone, and what a block adds to its table stays in the block.
    assert set(time.initializers) >= TIME_WEIGHTS
    assert not TIME_WEIGHTS & (set(text.initializers) | set(dit.initializers))
    assert not [name for name in time.initializers if "scale_shift_table" in name]
    adds = {f"blocks.{index}.add" for index in range(tiny.config.num_layers)} | {"head.add"}
    assert adds <= {node.name for node in dit}
    # Only what follows from constants is computed twice, and nothing is lost.
    fixed = names(constants(model.graph))

    def computed(graph: ir.Graph) -> list[str]:
        return [str(node.name) for node in graph if node.outputs[0].name not in fixed]

    apart = [name for part in (time, text, dit) for name in computed(part)]
    assert sorted(apart) == sorted(computed(model.graph))


@pytest.mark.parametrize(
    ("attention", "plugins", "single", "steps"),
    [
        (Sage3(), False, True, ["segment_00", "segment_01", "segment_02"]),
        (Sage3(), True, True, ["dit"]),
        (Native(), False, True, ["dit"]),
        (Native(), False, False, ["dit_00", "dit_01"]),
    ],
)
def test_no_engine_of_a_step_reads_the_timestep_in_any_mode(
    exported: Any,
    tiny: Any,
    monkeypatch: pytest.MonkeyPatch,
    attention: Attention,
    plugins: bool,
    single: bool,
    steps: list[str],
) -> None:
    monkeypatch.setattr(native, "SINGLE_ENGINE_BYTES", 1 << 20 if single else 0)
    linears = targeted_linears(tiny.config, NVFP4())
    plan = plan_dit(exported.model(), linears, attention=attention, plugins=plugins)
    assert [part.name for part in plan.parts] == ["time_tables", "text_kv", *steps]
    cadences = ["schedule", "prompt", *("step" for _ in steps)]
    assert [part.cadence for part in plan.parts] == cadences
    graphs = [part.model.graph for part in plan.parts]
    assert names(graphs[0].inputs) == {"timestep"}
    assert plan.parts[0].linears == ()
    for graph in graphs[2:]:
        assert "timestep" not in names(graph.inputs)
        assert "timestep_proj" in names(graph.inputs)
        assert not TIME_WEIGHTS & set(graph.initializers)
        # Nobody hands tables on: each engine reads them where loading left them.
        assert not {"temb", "timestep_proj"} & names(graph.outputs)
    assert "temb" in names(graphs[-1].inputs)
