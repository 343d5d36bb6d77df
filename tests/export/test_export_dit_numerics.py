"""The transformer's graph on ONNX Runtime against the module, with both recipes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import pytest
import torch

from fastwan.engines.plan import plan_dit
from fastwan.export.attentions import EXACT, Attention
from fastwan.export.attentions.native import Native
from fastwan.export.attentions.sage3 import Sage3
from fastwan.export.dit_graph import build_dit_graph, targeted_linears
from fastwan.export.linear_names import linear_node
from fastwan.export.passes.graphs import clone
from fastwan.export.passes.lower_for_onnxruntime import lower_for_onnxruntime
from fastwan.export.passes.split_dit import split_dit
from fastwan.export.recipes import BF16, NVFP4
from fastwan.export.weights import constant_tensors, load_module, load_weights


def _on_onnx_runtime(model: ir.Model, inputs: Any, kit: SimpleNamespace, **options: Any) -> Any:
    """velocity of a transformer's graph, its parts run one after the other."""
    values = {
        "latents": inputs.latents,
        "timestep": inputs.timestep,
        "encoder_hidden_states": inputs.text,
    }
    for part in split_dit(model).values():
        values |= kit.run(lower_for_onnxruntime(clone(part), **options)[0], values)
    return values["velocity"]


@pytest.fixture(scope="module")
def velocities(exported: Any, tiny: Any, kit: SimpleNamespace) -> dict[str, torch.Tensor]:
    """The module and the file, in fp32 and bf16, with the quantisers off."""
    inputs = kit.inputs(tiny.config, tiny.shape)
    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        module = load_module(tiny.weights, tiny.config, tiny.shape, NVFP4(), dtype)
        module.set_quantizers(activations=False, attention=EXACT)
        with torch.no_grad():
            found[f"module {name}"] = module(inputs.latents, inputs.timestep, inputs.text).float()
        found[f"file {name}"] = _on_onnx_runtime(
            exported.model(), inputs, kit, quantize_activations=False, attention=EXACT,
            rounding=dtype == torch.bfloat16,
        )  # fmt: skip
    return found


def test_fp32_graph_is_the_module(velocities: Any, kit: SimpleNamespace) -> None:
    assert kit.relative(velocities["file fp32"], velocities["module fp32"]) < 1e-5


def test_bf16_graph_rounds_like_the_module(velocities: Any, kit: SimpleNamespace) -> None:
    rounding = kit.relative(velocities["module bf16"], velocities["module fp32"])
    assert 1e-4 < rounding < 3e-2
    assert 1e-4 < kit.relative(velocities["file bf16"], velocities["module fp32"]) < 2 * rounding
    assert kit.relative(velocities["file bf16"], velocities["module bf16"]) < 2 * rounding


def test_cpu_files_run_with_the_quantisers_on(
    exported: Any, tiny: Any, velocities: Any, kit: SimpleNamespace
) -> None:
    inputs = kit.inputs(tiny.config, tiny.shape)
    values = {"latents": inputs.latents, "timestep": inputs.timestep}
    values["encoder_hidden_states"] = inputs.text
    for name in ("time_tables", "text_kv", "dit"):
        values |= kit.run(ir.load(exported.folder / f"{name}.cpu.onnx"), values)
    module = load_module(tiny.weights, tiny.config, tiny.shape, NVFP4())
    with torch.no_grad():
        expected, *moved = (
            module(inputs.latents, inputs.timestep * (1 + move), inputs.text).float()
            for move in (0, 3e-7, 1e-6, 3e-6)
        )
    # FP4 is chaotic: the file is as near to the module as the module is to itself when its
    # timestep moves by a few units in the last place.
    sensitivity = max(kit.relative(other, expected) for other in moved)
    assert 1e-3 < sensitivity < kit.relative(expected, velocities["module fp32"])
    assert kit.relative(values["velocity"], expected) < 1.5 * sensitivity


@pytest.fixture(scope="module")
def plain(tiny: Any, kit: SimpleNamespace, tmp_path_factory: Any) -> ir.Model:
    """The transformer with the recipe ``bf16``."""
    model = build_dit_graph(tiny.config, tiny.shape, BF16())
    tensors = constant_tensors(tiny.config, tiny.shape)
    for _, made in load_weights(tiny.weights, tiny.config, BF16()):
        tensors |= made
    kit.attach(model, tensors, tmp_path_factory.mktemp("plain"))
    assert set(tensors) <= set(model.graph.initializers)
    return model


def test_bf16_recipe_has_named_matmuls_and_no_fp4(plain: ir.Model, tiny: Any) -> None:
    linears = targeted_linears(tiny.config, BF16())
    nodes = {node.name: node for node in plain.graph}
    for linear in linears:
        assert linear.format == "bf16"
        assert nodes[linear.node].op_type == "MatMul"
        assert linear.node == linear_node(linear.name)
        weight = nodes[linear.node].inputs[1]
        assert weight is not None
        transpose = weight.producer()
        assert transpose is not None
        assert transpose.inputs[0] is plain.graph.initializers[f"{linear.name}.weight"]
    assert {node.domain for node in plain.graph} == {"", "fastwan"}
    kinds = {value.dtype for value in plain.graph.initializers.values()}
    assert not kinds & {ir.DataType.FLOAT4E2M1, ir.DataType.FLOAT8E4M3FN, ir.DataType.UINT8}


@pytest.mark.parametrize("attention", [Native(), Sage3()])
def test_bf16_recipe_can_be_planned_and_lowered(
    plain: ir.Model, tiny: Any, kit: SimpleNamespace, attention: Attention
) -> None:
    linears = targeted_linears(tiny.config, BF16())
    plan = plan_dit(plain, linears, attention=attention, plugins=False)
    names = ["time_tables", "text_kv"]
    if attention == Native():
        names.append("dit")
    else:
        names += [f"segment_{i:02d}" for i in range(tiny.config.num_layers + 1)]
    assert [part.name for part in plan.parts] == names
    assert len(plan.regions) == (0 if attention == Native() else tiny.config.num_layers)
    assert [linear for part in plan.parts for linear in part.linears] == [
        linear for part in plan.parts for linear in linears
        if linear.node in {node.name for node in part.model.graph}
    ]  # fmt: skip
    assert sum(len(part.linears) for part in plan.parts) == len(linears)
    for part in plan.parts:
        assert not [node for node in part.model.graph if node.domain == "fastwan"]
        lowered = lower_for_onnxruntime(clone(part.model))[0]
        assert {node.domain for node in lowered.graph} == {""}


def test_bf16_recipe_is_the_module(plain: ir.Model, tiny: Any, kit: SimpleNamespace) -> None:
    inputs = kit.inputs(tiny.config, tiny.shape)
    options = {"attention": EXACT, "rounding": False}
    velocity = _on_onnx_runtime(plain, inputs, kit, **options)
    module = load_module(tiny.weights, tiny.config, tiny.shape, BF16())
    exact = load_module(tiny.weights, tiny.config, tiny.shape, BF16(), torch.float32)
    with torch.no_grad():
        expected = exact(inputs.latents, inputs.timestep, inputs.text)
        rounded = module.set_quantizers(activations=False, attention=EXACT)(
            inputs.latents, inputs.timestep, inputs.text
        )
    assert kit.relative(velocity, expected) < 1e-5
    assert kit.relative(rounded, expected) > 1e-4
