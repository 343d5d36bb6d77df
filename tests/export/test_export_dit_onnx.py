"""``dit.onnx``: what is in the file, its reproducibility, and one linear of it evaluated."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from fastwan.bundle import open_bundle
from fastwan.export.attentions.sage3 import Sage3
from fastwan.export.dit_graph import targeted_linears
from fastwan.export.dit_onnx import export_dit
from fastwan.export.onnx_io import IR_VERSION, OPSET
from fastwan.export.passes.graphs import submodel
from fastwan.export.recipes import NVFP4
from fastwan.export.weights import load_module, tensor_digest
from fastwan.plugins.nvfp4 import PackedWeight, dequantize_weight, quantize_activation


def test_checker_and_versions(exported: Any) -> None:
    path = exported.folder / "dit.onnx"
    onnx.checker.check_model(str(path), full_check=False)
    model = onnx.load(str(path), load_external_data=False)
    assert model.ir_version == IR_VERSION
    assert {o.domain: o.version for o in model.opset_import} == {"": OPSET, "fastwan": 1, "trt": 1}
    names = {p.name for p in exported.folder.iterdir()}
    parts = {f"{name}.cpu.onnx" for name in ("time_tables", "text_kv", "dit")}
    assert names == {"dit.onnx", "dit.data", *parts}


def test_inputs_and_outputs(exported: Any, tiny: Any) -> None:
    graph = exported.model().graph
    latents, context = list(tiny.shape.latents()), [1, 512, tiny.config.text_dim]
    assert [(v.name, v.dtype, list(v.shape.numpy())) for v in graph.inputs] == [
        ("latents", ir.DataType.BFLOAT16, latents),
        ("timestep", ir.DataType.FLOAT, [1]),
        ("encoder_hidden_states", ir.DataType.BFLOAT16, context),
    ]
    (velocity,) = graph.outputs
    assert (velocity.name, list(velocity.shape.numpy())) == ("velocity", latents)


def test_attention_nodes_are_as_documented(exported: Any, tiny: Any) -> None:
    nodes = [node for node in exported.model().graph if node.domain == "fastwan"]
    assert [node.op_type for node in nodes] == ["SageAttention3"] * tiny.config.num_layers
    width, length, bf16, fp32 = (
        tiny.config.width, tiny.shape.padded_tokens, ir.DataType.BFLOAT16, ir.DataType.FLOAT,
    )  # fmt: skip
    for index, node in enumerate(nodes):
        assert [(v.dtype, list(v.shape.numpy())) for v in node.inputs] == [
            (bf16, [1, length, 3 * width]), (fp32, [3]), (bf16, [3 * width]),
            (bf16, [width]), (bf16, [width]), (fp32, [length, 64]), (fp32, [length, 64]),
        ]  # fmt: skip
        prefix = f"blocks.{index}.attn1."
        assert [v.name for v in node.inputs[1:]] == [
            f"{prefix}qkv_scale", f"{prefix}qkv_bias", f"{prefix}norm_q.weight",
            f"{prefix}norm_k.weight", "rope_cos", "rope_sin",
        ]  # fmt: skip
        assert node.inputs[0].producer().name == f"{prefix}qkv/MatMul"
        (out,) = node.outputs
        assert (out.dtype, list(out.shape.numpy())) == (bf16, [1, length, width])
        assert {name: a.value for name, a in node.attributes.items()} == {
            "num_heads": 2, "num_tokens": 180, "eps": pytest.approx(1e-6),
            "softmax_scale": pytest.approx(128**-0.5), "exact_max": 0,
        }  # fmt: skip


def test_every_targeted_linear_is_fp4_and_nothing_else(exported: Any, tiny: Any) -> None:
    graph = exported.model().graph
    fp4 = {n for n, v in graph.initializers.items() if v.dtype == ir.DataType.FLOAT4E2M1}
    linears = targeted_linears(tiny.config, NVFP4())
    assert fp4 == {f"{linear.name}.weight" for linear in linears}
    assert sum(len(linear.sources) for linear in linears) == 10 * tiny.config.num_layers
    records = [linear for record in exported.graphs.values() for linear in record.linears]
    assert sorted(records, key=lambda r: r.name) == sorted(linears, key=lambda r: r.name)
    coverage = pytest.importorskip("fastwan.engines.coverage")
    proto = onnx.load(str(exported.folder / "dit.onnx"), load_external_data=False)
    assert len(coverage.check_onnx_linears(proto, linears)) == len(linears)


@pytest.mark.trt
def test_digests_are_those_of_modelopts_bytes(exported: Any, tiny_bundle: Path) -> None:
    initializers = ir.load(tiny_bundle / "onnx" / "dit.onnx").graph.initializers
    external = {n for n, v in initializers.items() if n in exported.digests}
    assert external == set(exported.digests)
    for name, digest in exported.digests.items():
        raw = initializers[name].const_value.tobytes()
        assert tensor_digest(torch.frombuffer(bytearray(raw), dtype=torch.uint8)) == digest, name


@pytest.mark.trt
def test_export_in_another_process_and_folder_is_the_same_bytes(
    exported: Any, tiny_bundle: Path
) -> None:
    """The command line's, quantised by ModelOpt, with every stage traced anew."""
    folder = tiny_bundle / "onnx"
    for path in exported.folder.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes(), path.name
    digests = open_bundle(tiny_bundle).manifest.onnx.tensor_digests
    assert exported.digests.items() <= digests.items()


def test_files_tell_nothing_of_the_machine(exported: Any, tiny: Any) -> None:
    traces = {
        str(exported.folder), str(tiny.folder), str(Path(__file__).parent), str(Path.home()),
        sys.prefix, "site-packages", ".py", f"/{getpass.getuser()}", os.uname().nodename, "/tmp/",
    }  # fmt: skip
    for path in exported.folder.glob("*.onnx"):
        content = path.read_bytes()
        assert not [trace for trace in traces if trace.encode() in content], path.name
        assert any(known in content for known in (b"velocity", b"attn2.k", b"timestep_proj"))


def test_polygraphy_loads_it(exported: Any) -> None:
    backend = pytest.importorskip("polygraphy.backend.onnx", reason="polygraphy is not installed")
    model = backend.onnx_from_path(str(exported.folder / "dit.onnx"))
    assert len(model.graph.node) == len(exported.model().graph)


class TRT_FP4DynamicQuantize(OpRun):
    """What the builder's operator does, for onnx.reference."""

    op_domain = "trt"

    def _run(
        self, x: Any, scale: Any, axis: int = 0, block_size: int = 0, scale_type: int = 0
    ) -> tuple[Any, Any]:
        assert (axis, block_size, scale_type) == (-1, 16, 17)
        rows = torch.from_numpy(x.astype(np.float32))
        packed, block_scale = quantize_activation(rows, float(scale))
        nibbles = torch.stack((packed & 15, packed >> 4), -1).flatten(-2).numpy()
        scales = block_scale.view(torch.uint8).numpy()
        return nibbles.view(ml_dtypes.float4_e2m1fn), scales.view(ml_dtypes.float8_e4m3fn)


@pytest.mark.parametrize("name", ["blocks.1.attn1.to_out", "blocks.0.ffn.fc2"])
def test_onnx_reference_evaluates_one_linear_of_the_file(
    exported: Any, tiny: Any, kit: SimpleNamespace, name: str
) -> None:
    model = exported.model()
    nodes = {node.name: node for node in model.graph}
    matmul = nodes[f"{name}/MatMul"]
    x = _quantised_from(matmul)
    wanted = _between(matmul, x)
    part = submodel(
        model, "linear", [n for n in model.graph if n in wanted],
        [matmul.outputs[0], nodes[f"{name}/weight"].outputs[0]],
    )  # fmt: skip
    assert [value.name for value in part.graph.inputs] == [x.name]
    ir.external_data.load_to_model(part)
    evaluator = ReferenceEvaluator(ir.to_proto(part), new_ops=[TRT_FP4DynamicQuantize])
    rows = torch.randn(x.shape.numpy(), generator=torch.Generator().manual_seed(0)).bfloat16()
    feed = rows.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    outputs: Any = evaluator.run(None, {str(x.name): feed})
    product, weight = outputs

    module = load_module(tiny.weights, tiny.config, tiny.shape, NVFP4())
    linear: Any = module.get_submodule(name)
    packed = PackedWeight(linear.weight, linear.weight_scale, linear.weight_scale_2)
    assert torch.equal(torch.from_numpy(weight), dequantize_weight(packed))
    expected = linear(rows).float() - linear.bias.float()
    measured = torch.from_numpy(product.astype(np.float32))
    # The graph, taken literally, rounds the dequantised weight to bf16; a GEMM does not.
    assert kit.relative(measured, expected) < 1e-2
    linear.quantize_activation = False
    unquantised = linear(rows).float() - linear.bias.float()
    assert kit.relative(measured, unquantised) > 5e-2


def _quantised_from(matmul: ir.Node) -> Any:
    """The activation before its quantiser."""
    value = matmul.inputs[0]
    while value is not None:
        node = value.producer()
        assert node is not None
        value = node.inputs[0]
        if node.op_type == "TRT_FP4DynamicQuantize":
            return value
    raise AssertionError("no quantiser")


def _between(last: ir.Node, first: ir.Value) -> set[ir.Node]:
    nodes, queue = {last}, [last]
    while queue:
        for value in queue.pop().inputs:
            producer = None if value is None or value is first else value.producer()
            if producer is not None and producer not in nodes:
                nodes.add(producer)
                queue.append(producer)
    return nodes


def test_failed_export_leaves_no_model(
    exported: Any, tiny: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    def broken(weight: torch.Tensor, activation_global_scale: float) -> PackedWeight:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastwan.export.quantize.convert_linear", broken)
    monkeypatch.setattr("fastwan.export.dit_onnx.build_dit_graph", lambda *_: exported.model())
    torch.set_num_threads(2)
    with pytest.raises(KeyboardInterrupt):
        export_dit(tiny.weights, tiny.config, tiny.shape, NVFP4(), tmp_path, attention=Sage3())
    assert list(tmp_path.iterdir()) == []
    assert torch.get_num_threads() == 2  # the caller's
