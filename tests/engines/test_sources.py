"""From an ONNX bundle to sources, regions and a real engine bundle."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import helper as oh

from fastwan.bundle import open_bundle
from fastwan.config import SAMPLERS, TARGETS, DiTConfig
from fastwan.engines.backend import load_backend
from fastwan.engines.build import build_bundle
from fastwan.engines.builder import BuildRequest
from fastwan.engines.coverage import check_coverage
from fastwan.engines.layer_json import bundle_layers
from fastwan.engines.plan import plan_sources
from fastwan.errors import BadInput
from fastwan.export.attentions.sage3 import Sage3
from fastwan.manifest import Graph, OnnxManifest, TensorSpec
from fastwan.quality.cost import engine_cost
from fastwan.quality.gpus import UNKNOWN
from testkit.manifests import write_exported

TOKENS, WIDTH = 128, 256
ALL = ("dit", "decoder", "text_encoder")


def dit_graph(kit: SimpleNamespace) -> onnx.ModelProto:
    """One attention between two FP4 linears; parts that read the prompt or a timestep alone."""
    graph = kit.GraphBuilder()
    graph.inputs += [kit.value("x", [1, TOKENS, WIDTH])]
    graph.inputs += [kit.value(n, [1, 1, WIDTH]) for n in ("encoder_hidden_states", "timestep")]
    graph.outputs.append(kit.value("y", [1, TOKENS, WIDTH]))
    graph.node("Relu", ["encoder_hidden_states"], ["text"], "text/relu")
    graph.node("Relu", ["timestep"], ["table"], "time/relu")
    graph.quantise("x", "xq", "first")
    graph.linear("qkv", "xq", "qkv.out", 3 * WIDTH, WIDTH)
    fp32 = onnx.TensorProto.FLOAT
    graph.initializers.append(kit.raw_tensor("qkv_scale", fp32, [3], bytes(12)))
    graph.node(
        "SageAttention3", ["qkv.out", "qkv_scale"], ["attended"], "attn", domain="fastwan",
        num_heads=2, num_tokens=100,
    )  # fmt: skip
    graph.quantise("attended", "aq", "second")
    graph.linear("out", "aq", "out.out", WIDTH, WIDTH)
    graph.node("Add", ["out.out", "text"], ["shifted"], "add")
    graph.node("Add", ["shifted", "table"], ["y"], "head.add")
    model = graph.model("dit")
    model.opset_import.append(oh.make_opsetid("fastwan", 1))
    values = [kit.value(name, [1, 1, WIDTH]) for name in ("text", "table")]
    values += [kit.value(name, [1, TOKENS, WIDTH]) for name in ("attended", "shifted")]
    values += [kit.value("qkv.out", [1, TOKENS, 3 * WIDTH])]
    values += [kit.value("out.out", [1, TOKENS, WIDTH])]
    model.graph.value_info.extend(values)
    return model


def decoder_graph(kit: SimpleNamespace) -> onnx.ModelProto:
    half = onnx.TensorProto.FLOAT16
    graph = kit.GraphBuilder()
    graph.inputs += [kit.value(name, [1, 16, 8, 8], half) for name in ("latent", "memory_0")]
    graph.outputs += [kit.value(n, [1, 16, 8, 8], half) for n in ("frames", "memory_0_out")]
    graph.initializers.append(kit.raw_tensor("w", half, [16, 16, 3, 3], bytes(16 * 16 * 9 * 2)))
    graph.node("Conv", ["latent", "w"], ["memory_0_out"], "conv", pads=[1, 1, 1, 1])
    graph.node("Add", ["memory_0", "memory_0_out"], ["frames"], "add")
    return graph.model("decoder")


def encoder_graph(kit: SimpleNamespace) -> onnx.ModelProto:
    graph = kit.GraphBuilder()
    graph.inputs.append(kit.value("embeddings", [1, "length", 32]))
    graph.outputs.append(kit.value("hidden_states", [1, "length", 32]))
    graph.node("Relu", ["embeddings"], ["hidden_states"], "relu")
    return graph.model("text_encoder")


def spec(name: str, dtype: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


@pytest.fixture
def exported(kit: SimpleNamespace, tmp_path: Path) -> tuple[Path, OnnxManifest]:
    folder = tmp_path / "exported"
    folder.mkdir()
    for name, model in (
        ("dit", dit_graph(kit)),
        ("decoder", decoder_graph(kit)),
        ("text_encoder", encoder_graph(kit)),
    ):
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString(deterministic=True))

    def graph(file: str, inputs: list[TensorSpec], outputs: list[TensorSpec], *names: str) -> Graph:
        linears = tuple(map(kit.linear, names))
        return Graph(
            file=file, data=(), inputs=tuple(inputs), outputs=tuple(outputs), linears=linears
        )

    half, bf16 = "float16", "bfloat16"
    latents = [spec(n, half, 1, 16, 8, 8) for n in ("latent", "memory_0")]
    frames = [spec(n, half, 1, 16, 8, 8) for n in ("frames", "memory_0_out")]
    embeddings = [spec("embeddings", bf16, 1, "length", 32)]
    graphs = {
        "time_tables": graph("dit.onnx", [], []),
        "text_kv": graph("dit.onnx", [], []),
        "dit": graph("dit.onnx", [], [], "qkv", "out"),
        "decoder": graph("decoder.onnx", latents, frames),
        "text_encoder": graph("text_encoder.onnx", embeddings, embeddings),
    }
    return folder, write_exported(folder, graphs, dit=DiTConfig(text_length=64))


def plan(exported: tuple[Path, OnnxManifest], *components: str) -> Any:
    folder, manifest = exported
    return plan_sources(
        folder, manifest, attention=Sage3(), plugins=False, components=components or ALL
    )


def test_the_dit_becomes_segments_with_regions_between(
    exported: tuple[Path, OnnxManifest],
) -> None:
    sources, regions = plan(exported)
    names = [source.name for source in sources]
    segments = ["segment_00", "segment_01"]
    assert names == ["text_encoder", "time_tables", "text_kv", *segments, "decoder"]
    cadences = ["prompt", "schedule", "prompt", "step", "step", "latent"]
    assert [source.cadence for source in sources] == cadences
    linears = {source.name: [linear.name for linear in source.linears] for source in sources}
    assert (linears["segment_00"], linears["segment_01"]) == (["qkv"], ["out"])
    assert [region.name for region in regions] == ["region_00"]


def test_formats_and_profiles(exported: tuple[Path, OnnxManifest]) -> None:
    by_name = {source.name: source for source in plan(exported)[0]}
    assert by_name["decoder"].io_formats == {"memory_0": "hwc8", "memory_0_out": "hwc8"}
    assert by_name["text_encoder"].profiles == {
        "embeddings": (((1, 1, 32), (1, 64, 32), (1, 64, 32)),)
    }
    assert by_name["segment_00"].profiles is None


@pytest.mark.parametrize(
    ("longest", "buckets"),
    [
        (512, [(1, 128), (129, 256), (257, 512)]),
        (200, [(1, 128), (129, 200)]),
        (128, [(1, 128)]),
        (5, [(1, 5)]),
        (600, [(1, 128), (129, 256), (257, 512), (513, 600)]),
    ],
)
def test_buckets_cover_every_length_once(
    exported: tuple[Path, OnnxManifest], longest: int, buckets: list[tuple[int, int]]
) -> None:
    folder, manifest = exported
    model = manifest.model.model_copy(update={"dit": DiTConfig(text_length=longest)})
    sources, _ = plan((folder, manifest.model_copy(update={"model": model})), "text_encoder")
    (source,) = sources
    assert source.profiles is not None
    profiles = source.profiles["embeddings"]
    assert [(least[1], most[1]) for least, _, most in profiles] == buckets
    assert all(usual == most for _, usual, most in profiles)
    assert {shape[::2] for profile in profiles for shape in profile} == {(1, 32)}


def test_components_select(exported: tuple[Path, OnnxManifest]) -> None:
    sources, regions = plan(exported, "decoder")
    assert ([source.name for source in sources], regions) == (["decoder"], ())


def test_a_component_that_was_not_exported_is_named(
    exported: tuple[Path, OnnxManifest],
) -> None:
    folder, manifest = exported
    graphs = {name: graph for name, graph in manifest.graphs.items() if name != "decoder"}
    without = manifest.model_copy(update={"graphs": graphs})
    assert plan((folder, without), "dit")
    with pytest.raises(BadInput, match="the ONNX bundle has no decoder"):
        plan((folder, without), "decoder")


def test_a_linked_graph_is_refused(exported: tuple[Path, OnnxManifest], tmp_path: Path) -> None:
    folder, _ = exported
    (folder / "dit.onnx").rename(tmp_path / "dit.onnx")
    (folder / "dit.onnx").symlink_to(tmp_path / "dit.onnx")
    with pytest.raises(BadInput, match="symbolic link"):
        plan(exported, "dit")


@pytest.mark.trt
def test_the_whole_way_to_a_bundle(exported: tuple[Path, OnnxManifest], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
    sources, regions = plan(exported)
    request = BuildRequest(
        target=TARGETS["rtx5090"], backend=load_backend("tensorrt-rtx"), attention="sage3",
        samplers=(SAMPLERS["unipc"],), components=ALL, use_cache=False,
    )  # fmt: skip
    build_bundle(exported[0], tmp_path / "out", sources, request, regions=regions)
    bundle = open_bundle(tmp_path / "out")
    region = bundle.manifest.regions["region_00"]
    assert (region.after, region.nodes[0].attributes["num_tokens"]) == ("segment_00", 100)
    assert [s.name for s in region.constants] == ["qkv_scale"]
    engines, layers = bundle.manifest.engines, bundle_layers(bundle)
    covered = [check_coverage(layers[n], e.linears).covered for n, e in engines.items()]
    assert sum(map(len, covered)) == 2
    moved = {n: engine_cost(e, layers[n], UNKNOWN).bytes_moved for n, e in engines.items()}
    assert moved["time_tables"] == 2 * 2 * WIDTH  # read and written, bf16
    assert moved["text_encoder"] == 2 * 64 * 32 * 2
    assert bundle.manifest.engines["decoder"].inputs[1].format == "hwc8"


@pytest.mark.trt
def test_the_decoder_makes_no_upsampled_image_of_many_channels(tiny_bundle: Path) -> None:
    """At full height and width there are the pixels alone, in their three channels."""
    bundle = open_bundle(tiny_bundle)
    shape = bundle.manifest.onnx.model.shape
    size = {shape.height, shape.width}
    shapes = [
        tensor.shape
        for record in bundle_layers(bundle)["decoder"]
        for tensor in record.tensors
        if size <= set(tensor.shape)
    ]
    assert shapes
    assert all(3 in each for each in shapes)
