"""Each fault in a bundle whose hashes are right fails the check that is there for it.

`test_an_untouched_copy_passes` is the twin of all of them: the same copy without the fault.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

pytestmark = pytest.mark.trt

CHEAP = (
    "fp4_graph", "fp4_engines", "weights_bit_exact", "attention_nodes", "packing_bit_exact",
    "quantizer_recipe", "sampler", "decoder", "text_encoder",
)  # fmt: skip
COSTLY = ("quantizer_bit_exact", "graph_fp32", "cpu_reference")
STEPS = ("step_0", "step_1", "step_2", "frames")
LINEAR = "blocks.0.ffn.fc1"
ROWS, COLUMNS = 512, 256

Change = Callable[[np.ndarray], np.ndarray]


def test_an_untouched_copy_passes(mutant: Any, checkpoint: Any) -> None:
    mutant.rehash()
    assert mutant.failing(*CHEAP, *COSTLY) == set()
    assert mutant.failing(*CHEAP, checkpoint=checkpoint) == set()


def flip_nibble(raw: np.ndarray) -> np.ndarray:
    raw[1000] ^= 0x10
    return raw


def swap_nibbles(raw: np.ndarray) -> np.ndarray:
    return (raw >> 4) | (raw << 4)


def raise_one_scale(raw: np.ndarray) -> np.ndarray:
    # Not the largest one, whose successor is no number.
    raw[int(np.argmin(raw))] += 1
    return raw


def transpose_scales(raw: np.ndarray) -> np.ndarray:
    return raw.reshape(ROWS, COLUMNS // 16).T


def swizzle_scales(raw: np.ndarray) -> np.ndarray:
    """The layout of the GEMM's operand: tiles of 128 rows by 4 blocks, as 32 x 4 x 4."""
    tiles = raw.reshape(ROWS // 128, 4, 32, COLUMNS // 64, 4)
    return tiles.transpose(0, 3, 2, 1, 4)


def scale_up(raw: np.ndarray) -> np.ndarray:
    return (raw.view(np.float32) * np.float32(1.01)).view(np.uint8)


def zero_out(raw: np.ndarray) -> np.ndarray:
    return np.zeros_like(raw)


WEIGHT_FAULTS: dict[str, tuple[str, Change]] = {
    "flipped nibble": ("weight", flip_nibble),
    "swapped nibbles": ("weight", swap_nibbles),
    "wrong block scale": ("weight_scale", raise_one_scale),
    "transposed scales": ("weight_scale", transpose_scales),
    "swizzled scales": ("weight_scale", swizzle_scales),
    "wrong global scale": ("weight_scale_2", scale_up),
    "zeroed weight": ("weight", zero_out),
}


@pytest.mark.parametrize("fault", WEIGHT_FAULTS)
def test_a_wrong_weight_fails_weights_bit_exact(mutant: Any, checkpoint: Any, fault: str) -> None:
    suffix, change = WEIGHT_FAULTS[fault]
    name = f"{LINEAR}.{suffix}"
    digest = mutant.weight(name, change)
    mutant.rehash()
    assert "weights_bit_exact" in mutant.failing("weights_bit_exact")
    # Somebody who writes the manifest too is found out by the checkpoint alone.
    mutant.forge_digest(name, digest)
    assert mutant.failing("weights_bit_exact") == set()
    both = ("weights_bit_exact", "packing_bit_exact")
    assert mutant.failing(*both, checkpoint=checkpoint) == set(both)


def test_values_that_the_recipe_cannot_make_fail_packing(mutant: Any) -> None:
    def halve(raw: np.ndarray) -> np.ndarray:
        scale = raw.view(ml_dtypes.float8_e4m3fn).astype(np.float32) / 2
        return scale.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)

    name = f"{LINEAR}.weight_scale"
    mutant.forge_digest(name, mutant.weight(name, halve))
    mutant.rehash()
    assert mutant.failing("weights_bit_exact", "packing_bit_exact") == {"packing_bit_exact"}


def test_a_missing_digest_fails(mutant: Any) -> None:
    with mutant.manifest() as fields:
        del fields["onnx"]["tensor_digests"][f"{LINEAR}.weight"]
    assert mutant.failing(*CHEAP) == {"weights_bit_exact"}


def test_a_dropped_fp4_node_fails_fp4_graph(mutant: Any, kit: Any) -> None:
    with mutant.graph("dit.onnx") as graph:
        matmul = kit.named(graph, f"{LINEAR}/MatMul")
        quantised = matmul.input[0].split("/fp4/")[0]
        matmul.input[0] = quantised
    mutant.rehash()
    assert mutant.failing(*CHEAP) == {"fp4_graph"}


@pytest.mark.parametrize("where", ["graphs", "engines"])
def test_empty_linears_fail(mutant: Any, where: str) -> None:
    with mutant.manifest() as fields:
        holder = fields["onnx"]["graphs"] if where == "graphs" else fields["engines"]
        for record in holder.values():
            record["linears"] = []
    expected = {"graphs": "fp4_graph", "engines": "fp4_engines"}[where]
    assert mutant.failing(*CHEAP) == {expected}


def test_a_bf16_gemm_in_the_layer_records_fails_fp4_engines(mutant: Any) -> None:
    assert mutant.lose_gemm(LINEAR) == 2
    assert mutant.failing(*CHEAP) == {"fp4_engines"}


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_tokens", 1), ("exact_max", 1), ("softmax_scale", 0.08), ("num_tokens", 0)],
)
def test_a_region_that_is_not_the_graphs_fails_engine_plan(
    mutant: Any, name: str, value: float
) -> None:
    """The runtime launches what the manifest says, whatever the graph says."""
    assert mutant.failing("engine_plan") == set()
    with mutant.manifest() as fields:
        node = fields["regions"]["region_01"]["nodes"][0]
        assert node["attributes"][name] != value
        node["attributes"][name] = value
    assert mutant.failing("engine_plan") == {"engine_plan"}


@pytest.mark.parametrize("fault", ["removed", "runs", "dtype", "shape"])
def test_an_engine_that_is_not_the_graphs_fails_engine_plan(mutant: Any, fault: str) -> None:
    with mutant.manifest() as fields:
        if fault == "removed":
            fields["regions"].popitem()
        elif fault == "runs":
            fields["engines"]["text_kv"]["runs"] = "schedule"
        elif fault == "dtype":
            fields["engines"]["time_tables"]["outputs"][0]["dtype"] = "float16"
        else:
            fields["engines"]["segment_01"]["inputs"][0]["shape"][-1] += 1
    assert mutant.failing("engine_plan") == {"engine_plan"}


def test_no_layer_records_fail_fp4_engines(mutant: Any) -> None:
    with mutant.layers() as layers:
        layers["segment_01"] = []
    mutant.rehash()
    assert mutant.failing(*CHEAP) == {"fp4_engines"}


def test_a_changed_activation_scale_fails(mutant: Any, kit: Any) -> None:
    with mutant.graph("dit.onnx") as graph:
        kit.set_scalar(graph, "activation_global_scale", 0.5)
    mutant.rehash()
    failing = mutant.failing(*CHEAP, "quantizer_bit_exact", "cpu_reference")
    assert failing == {"quantizer_recipe", "cpu_reference"}


@pytest.mark.parametrize("file", ["dit.cpu.onnx", "text_kv.cpu.onnx"])
def test_a_changed_cpu_quantiser_fails_quantizer_bit_exact(
    mutant: Any, kit: Any, file: str
) -> None:
    with mutant.graph(file) as graph:
        kit.set_scalar(graph, "activation_global_scale", 0.5)
    mutant.rehash()
    assert mutant.failing(*CHEAP, "quantizer_bit_exact") == {"quantizer_bit_exact"}


def test_a_cpu_graph_without_a_quantiser_fails_quantizer_bit_exact(mutant: Any) -> None:
    with mutant.graph("dit.cpu.onnx") as graph:
        (matmul,) = (
            node
            for node in graph.node
            if node.op_type == "MatMul" and node.name.startswith(f"{LINEAR}/lowered/")
        )
        producers = {out: node for node in graph.node for out in node.output}
        value = matmul.input[0]
        while "/lowered/" in value and producers[value].op_type != "Cast":
            value = producers[value].input[0]
        matmul.input[0] = value
    mutant.rehash()
    assert mutant.failing("quantizer_bit_exact") == {"quantizer_bit_exact"}


def test_a_changed_softmax_scale_fails(mutant: Any) -> None:
    with mutant.graph("dit.onnx") as graph:
        node = next(node for node in graph.node if node.op_type == "SageAttention3")
        (scale,) = (a for a in node.attribute if a.name == "softmax_scale")
        scale.f *= 1.01
    mutant.rehash()
    names = ("attention_nodes", "graph_fp32", "weights_bit_exact")
    assert mutant.failing(*names) == {"attention_nodes", "graph_fp32"}


def test_a_wrong_rope_table_fails_even_with_its_digest(mutant: Any) -> None:
    def shift(raw: np.ndarray) -> np.ndarray:
        return np.roll(raw.view(np.float32).reshape(-1, 64), 1, axis=0).view(np.uint8)

    mutant.forge_digest("rope_cos", mutant.weight("rope_cos", shift))
    mutant.rehash()
    names = ("weights_bit_exact", "graph_fp32", "packing_bit_exact")
    assert mutant.failing(*names) == {"weights_bit_exact", "graph_fp32"}


@pytest.mark.parametrize(
    "change", [{"shift": 3.001}, {"steps": 4}, {"shift_twice": False}, {"name": "other"}]
)
def test_changed_sampler_constants_fail(mutant: Any, change: dict[str, Any]) -> None:
    assert mutant.failing("sampler") == set()
    with mutant.manifest() as fields:
        first = fields["samplers"][0]
        first.update(change)
        fields["sampler"] = first["name"]
    assert mutant.failing("sampler") == {"sampler"}


@pytest.mark.parametrize(
    ("row", "change"),
    [
        (0, {"shift": 3.0001}),
        (1, {"shift": 8.0001}),
        (1, {"timesteps": [1000, 757, 523]}),
        (1, {"kind": "unipc"}),
    ],
)
def test_every_sampler_of_the_manifest_is_held_not_the_default_alone(
    mutant: Any, row: int, change: dict[str, Any]
) -> None:
    assert mutant.failing("sampler") == set()
    with mutant.manifest() as fields:
        assert fields["sampler"] == fields["samplers"][0]["name"] == "unipc"
        fields["samplers"][row].update(change)
    assert mutant.failing("sampler") == {"sampler"}


@pytest.mark.parametrize(
    "change", [{"name": "own"}, {"name": "unipc-50", "guidance": 5.0}, {"name": "own", "kind": "x"}]
)
def test_a_further_sampler_without_published_constants_fails(
    mutant: Any, change: dict[str, Any]
) -> None:
    with mutant.manifest() as fields:
        fields["samplers"].append({**fields["samplers"][0], **change})
    assert mutant.failing("sampler") == {"sampler"}


def test_digests_that_were_all_removed_are_missed(mutant: Any) -> None:
    with mutant.manifest() as fields:
        digests = fields["onnx"]["tensor_digests"]
        kept = {name: each for name, each in digests.items() if not name.startswith("encoder.")}
        assert kept.keys() < digests.keys()
        fields["onnx"]["tensor_digests"] = kept
    assert mutant.failing("weights_bit_exact") == {"weights_bit_exact"}


@pytest.mark.parametrize("name", ["dit", "decoder"])
def test_a_component_without_its_graph_is_not_passed_over(mutant: Any, name: str) -> None:
    own = {"dit": "attention_nodes", "decoder": "decoder"}[name]
    assert mutant.failing(own) == set()
    with mutant.manifest() as fields:
        del fields["onnx"]["graphs"][name]
    assert own in mutant.failing(own)


@pytest.mark.parametrize("name", ["unipc", "dmd"])
def test_both_samplers_have_published_constants(mutant: Any, name: str) -> None:
    with mutant.manifest() as fields:
        fields["sampler"] = name
    assert mutant.failing("sampler") == set()


def test_a_changed_timestep_embedding_fails_the_steps(mutant: Any) -> None:
    with mutant.graph("time_tables.cpu.onnx") as graph:
        (node,) = (node for node in graph.node if node.op_type == "Cos" and "embed" in node.name)
        node.op_type = "Sin"
    mutant.rehash()
    assert mutant.failing(*STEPS) >= set(STEPS[:3])


OTHER_WEIGHTS = {
    "decoder.onnx": "decoder.1.weight",
    "text_encoder.onnx": "encoder.block.0.layer.0.SelfAttention.q.weight",
}


@pytest.mark.parametrize("file", OTHER_WEIGHTS)
def test_weights_of_the_other_components_are_held_too(
    mutant: Any, checkpoint: Any, file: str
) -> None:
    mutant.weight(OTHER_WEIGHTS[file], flip_nibble, file)
    mutant.rehash()
    failing = mutant.failing("weights_bit_exact", checkpoint=checkpoint)
    assert failing == {"weights_bit_exact"}


def test_a_changed_decoder_fails(mutant: Any) -> None:
    with mutant.graph("decoder.onnx") as graph:
        node = next(node for node in graph.node if node.op_type == "Relu")
        node.op_type = "Abs"
    mutant.rehash()
    assert mutant.failing(*CHEAP) == {"decoder"}


def test_a_changed_text_encoder_fails(mutant: Any) -> None:
    def first_attention(graph: onnx.GraphProto) -> onnx.NodeProto:
        return next(node for node in graph.node if node.op_type == "Attention")

    with mutant.graph("text_encoder.cpu.onnx") as graph:
        node = first_attention(graph)
        node.input[0], node.input[1] = node.input[1], node.input[0]
    mutant.rehash()
    assert mutant.failing(*CHEAP) == {"text_encoder"}
