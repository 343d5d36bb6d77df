"""The exported text encoder: reproducible, streamed, and the same as transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file

from fastwan.config import TARGETS, TextEncoderConfig
from fastwan.engines.backend import BuildOptions
from fastwan.engines.coverage import check_coverage
from fastwan.engines.plan import TEXT_BUCKETS, plan_sources
from fastwan.engines.tensorrt_rtx import TensorRTRTX
from fastwan.export import text_encoder_onnx
from fastwan.export.attentions.native import Native
from fastwan.export.cache import ExportCache
from fastwan.export.checkpoint.names import expected_text_encoder_tensors
from fastwan.export.checkpoint.synthetic_files import tokenizer_files
from fastwan.export.models.layers import Linear
from fastwan.export.models.umt5 import UMT5Encoder, relative_buckets
from fastwan.export.onnx_io import save_model, torch_tensor
from fastwan.export.passes.lower_for_onnxruntime import lower_for_onnxruntime
from fastwan.export.recipes import BF16, NVFP4, Recipe
from fastwan.export.text_encoder_onnx import (
    export_text_encoder,
    targeted_linears,
)
from fastwan.manifest import Graph
from fastwan.plugins.nvfp4 import quantize_weight
from fastwan.progress import Quiet
from testkit.manifests import exported_of

TINY = TextEncoderConfig(vocab_size=320, d_model=64, d_kv=16, d_ff=160, num_layers=3, num_heads=4)
PROMPT = "A red fox runs through fresh snow."


class Weights:
    """A UMT5 checkpoint in memory that counts what is read of it."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.state: dict[str, torch.Tensor] = {}
        for name, shape in expected_text_encoder_tensors(TINY).items():
            value = torch.randn(shape, generator=generator)
            if "layer_norm" in name:
                value = 1 + 0.2 * value
            elif "relative_attention_bias" not in name and name != "shared.weight":
                value = value * shape[-1] ** -0.5
                if ".q." in name:  # as T5 is initialised: attention scores of variance 1
                    value = value * TINY.d_kv**-0.5
            self.state[name] = value.to(torch.bfloat16)
        self.reads: list[str] = []
        self.most_rows = 0

    def names(self) -> list[str]:
        return list(self.state)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.state[name].shape)

    def read(self, name: str) -> torch.Tensor:
        self.reads.append(name)
        return self.state[name]

    def read_rows(self, name: str, begin: int, end: int) -> torch.Tensor:
        self.most_rows = max(self.most_rows, end - begin)
        return self.state[name][begin:end]


class Exported(NamedTuple):
    recipe: Recipe
    folder: Path
    graph: Graph
    extra_files: tuple[str, ...]
    weights: Weights
    digests: dict[str, str]


def _tokenizer() -> dict[str, bytes]:
    return {name: json.dumps(fields).encode() for name, fields in tokenizer_files().items()}


def _export(folder: Path, recipe: Recipe) -> Exported:
    weights, target = Weights(), folder / "bundle"
    target.mkdir()
    graph, extra, digests = export_text_encoder(
        weights, TINY, target, tokenizer=_tokenizer(), recipe=recipe
    )
    return Exported(recipe, target, graph, extra, weights, digests)


@pytest.fixture(scope="module", params=[BF16(), NVFP4()], ids=["bf16", "nvfp4"])
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Exported]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_encoder_onnx, "_ROWS", 100)  # no divisor of the vocabulary
        yield _export(tmp_path_factory.mktemp("text_encoder"), request.param)


def test_files_and_record(exported: Exported) -> None:
    folder, graph, extra = exported[1:4]
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert files == {graph.file, graph.cpu_file, *graph.data, *extra}
    assert {"embedding.safetensors", "tokenizer/tokenizer.json"} <= set(extra)
    for name, data in _tokenizer().items():
        assert (exported.folder / "tokenizer" / name).read_bytes() == data
    model = ir.load(folder / graph.file)
    for (spec,), (value,) in (
        (graph.inputs, model.graph.inputs),
        (graph.outputs, model.graph.outputs),
    ):
        assert spec.name == value.name
        assert value.dtype == ir.DataType.BFLOAT16
        assert spec.dtype == "bfloat16"
        assert value.shape is not None
        assert spec.shape == tuple(d if isinstance(d, int) else str(d) for d in value.shape.dims)
        assert spec.shape == (1, "length", TINY.d_model)


def test_a_finished_graph_comes_from_the_cache(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the weights are written where it says, whatever their values."""
    cache, given = ExportCache(tmp_path / "cache"), {"tokenizer": _tokenizer()}
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        made = export_text_encoder(
            Weights(), TINY, tmp_path / name, recipe=exported.recipe, cache=cache, **given
        )
        assert made == (exported.graph, exported.extra_files, exported.digests)
        for file in (made[0].file, made[0].cpu_file, *made[0].data):
            assert (tmp_path / name / file).read_bytes() == (exported.folder / file).read_bytes()
        monkeypatch.setattr(text_encoder_onnx, "trace", None)
    with pytest.raises(TypeError):
        export_text_encoder(
            Weights(), replace(TINY, num_layers=2), tmp_path / "second",
            recipe=exported.recipe, cache=cache, **given,
        )  # fmt: skip


def test_data_holds_the_checkpoint(exported: Exported) -> None:
    recipe, folder, graph, _, weights, _ = exported
    initializers = ir.load(folder / graph.file).graph.initializers
    values = {name: value.const_value for name, value in initializers.items()}
    targeted = {f"{source}.weight" for linear in graph.linears for source in linear.sources}
    assert len(targeted) == (6 * TINY.num_layers if recipe.quantised else 0)
    for name, expected in weights.state.items():
        value = values.get(name)
        if name == "shared.weight":
            assert value is None
            continue
        assert value is not None
        if name in targeted:
            packed = quantize_weight(expected)
            scale, global_scale = values[f"{name}_scale"], values[f"{name}_scale_2"]
            assert scale is not None
            assert global_scale is not None
            assert value.dtype == ir.DataType.FLOAT4E2M1
            assert value.tobytes() == packed.packed.numpy().tobytes(), name
            assert scale.tobytes() == packed.block_scale.view(torch.uint8).numpy().tobytes()
            assert global_scale.tobytes() == packed.global_scale.numpy().tobytes()
        else:
            assert torch.equal(torch_tensor(value), expected), name
    table = initializers["relative_buckets"].const_value
    assert table is not None
    assert np.array_equal(table.numpy(), relative_buckets(TINY, 512).numpy())


def test_weights_are_read_once_and_the_embedding_in_pieces(exported: Exported) -> None:
    folder, weights = exported.folder, exported.weights
    assert sorted(weights.reads) == sorted(set(weights.names()) - {"shared.weight"})
    assert weights.most_rows == 100
    embedding = load_file(folder / "embedding.safetensors")
    assert list(embedding) == ["weight"]
    assert torch.equal(embedding["weight"], weights.state["shared.weight"])


def test_second_export_is_the_same_bytes(exported: Exported, tmp_path: Path) -> None:
    again = _export(tmp_path, exported.recipe)
    assert (again.graph, again.extra_files) == (exported.graph, exported.extra_files)
    graph = again.graph
    assert graph.cpu_file is not None
    for file in (graph.file, graph.cpu_file, *graph.data, *again.extra_files):
        assert (again.folder / file).read_bytes() == (exported.folder / file).read_bytes(), file
    for file in (graph.file, graph.cpu_file):
        content = (again.folder / file).read_bytes()
        for trace in (str(tmp_path), str(Path(__file__).parent), "site-packages", ".py"):
            assert trace.encode() not in content


def test_one_attention_node_a_block_and_named_linears(exported: Exported) -> None:
    nodes = list(ir.load(exported.folder / exported.graph.file).graph)
    assert sum(node.op_type == "Attention" for node in nodes) == TINY.num_layers
    names = {node.name for node in nodes if node.op_type == "MatMul"}
    weights = {n for n in expected_text_encoder_tensors(TINY) if n.startswith("encoder.block")}
    linears = {n for n in weights if "norm" not in n and "bias" not in n}
    assert names == {n.removesuffix(".weight") + "/MatMul" for n in linears}
    assert len(names) == 7 * TINY.num_layers
    assert {linear.node for linear in targeted_linears(TINY, exported.recipe)} <= names


def _module(weights: Weights, recipe: Recipe, dtype: torch.dtype) -> UMT5Encoder:
    """The torch module with the same number formats, activations unquantised."""
    encoder = UMT5Encoder(TINY, recipe, dtype).eval()
    state = {name: value.to(dtype) for name, value in weights.state.items()}
    for name, linear in encoder.named_modules():
        if isinstance(linear, Linear):
            linear.quantize_activation = False
            if linear.recipe.quantised:
                packed = quantize_weight(weights.state[f"{name}.weight"])
                for suffix, tensor in zip(("", "_scale", "_scale_2"), packed, strict=True):
                    state[f"{name}.weight{suffix}"] = tensor
    encoder.load_state_dict(state)
    return encoder


def _relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    return float((value.double() - expected.double()).norm() / expected.double().norm())


def _lowered(exported: Exported, folder: Path, *, rounding: bool) -> Path:
    """The graph for ONNX Runtime with unquantised activations."""
    source, graph = exported.folder, exported.graph
    model, _ = lower_for_onnxruntime(
        ir.load(source / graph.file), quantize_activations=False, rounding=rounding
    )
    shutil.copy(source / graph.data[0], folder)
    save_model(model, folder / "lowered.onnx")
    return folder / "lowered.onnx"


def _run(path: Path, weights: Weights, tokens: torch.Tensor) -> torch.Tensor:
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    embeddings = torch.nn.functional.embedding(tokens, weights.state["shared.weight"])
    return torch.from_numpy(session.run(None, {"embeddings": embeddings.float().numpy()})[0])


@pytest.mark.parametrize("length", [1, 2, 37, 512])
def test_onnx_runtime_equals_the_module(exported: Exported, tmp_path: Path, length: int) -> None:
    """Quantiser off: exactly in fp32, and within bf16's own rounding with it."""
    weights, recipe = exported.weights, exported.recipe
    tokens = torch.randint(0, 320, (1, length), generator=torch.Generator().manual_seed(1))
    expected = _module(weights, recipe, torch.float32)(tokens)
    exact = _run(_lowered(exported, tmp_path, rounding=False), weights, tokens)
    assert exact.shape == (1, length, TINY.d_model)
    assert _relative(exact, expected) < 1e-5
    rounding = _relative(_module(weights, recipe, torch.bfloat16)(tokens), expected)
    assert 0 < rounding < 4e-2
    rounded = _run(_lowered(exported, tmp_path, rounding=True), weights, tokens)
    assert 0 < _relative(rounded, expected) < 1.5 * rounding


def test_cpu_graph_quantises_the_activations(exported: Exported, tmp_path: Path) -> None:
    folder, graph, weights = exported.folder, exported.graph, exported.weights
    assert graph.cpu_file is not None
    tokens = torch.randint(0, 320, (1, 37), generator=torch.Generator().manual_seed(1))
    plain = _run(_lowered(exported, tmp_path, rounding=True), weights, tokens)
    complete = _run(folder / graph.cpu_file, weights, tokens)
    difference = _relative(complete, plain)
    if exported.recipe.quantised:
        assert 1e-2 < difference < 0.3
    else:
        assert difference == 0


def test_prompt_to_embeddings_equals_transformers(exported: Exported) -> None:
    """Tokenise, gather, encode at the true length: as transformers with a padded, masked batch."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("onnxruntime")
    from fastwan.runtime.cpu.executor import OnnxRuntimeExecutor
    from fastwan.runtime.model.text import EmbeddingTable, TextEncoder
    from fastwan.runtime.text import load_tokenizer

    recipe, folder, graph, _, weights, _ = exported
    assert graph.cpu_file is not None
    tokenizer = load_tokenizer(folder / "tokenizer/tokenizer.json", 64)
    table = EmbeddingTable(folder / "embedding.safetensors")
    executor = OnnxRuntimeExecutor(folder / graph.cpu_file)
    encoder = TextEncoder(lambda prompt: tokenizer.encode(prompt).ids, table, executor, 64)
    tokens = encoder.token_ids(PROMPT)
    original = transformers.UMT5EncoderModel(
        transformers.UMT5Config(
            vocab_size=TINY.vocab_size, d_model=TINY.d_model, d_kv=TINY.d_kv, d_ff=TINY.d_ff,
            num_layers=TINY.num_layers, num_heads=TINY.num_heads, feed_forward_proj="gated-gelu",
        )
    ).eval()  # fmt: skip
    state = {name: value.float() for name, value in weights.state.items()}
    original.load_state_dict({**state, "encoder.embed_tokens.weight": state["shared.weight"]})
    padded = torch.tensor([tokens + [0] * (64 - len(tokens))])
    mask = (torch.arange(64) < len(tokens)).long()[None]
    with torch.no_grad():
        expected = original(padded, attention_mask=mask).last_hidden_state[:, : len(tokens)]
    embeddings = torch.from_numpy(np.asarray(encoder.encode(PROMPT), np.float32))
    assert embeddings.shape == (1, 64, TINY.d_model)
    # FP4 is as far from the bf16 model as its weights and activations are coarse.
    limit = 0.4 if recipe.quantised else 2e-2
    assert _relative(embeddings[:, : len(tokens)], expected) < limit
    assert not embeddings[:, len(tokens) :].any()


@pytest.mark.trt
def test_tensorrt_rtx_builds_it_with_a_profile_for_every_bucket(
    exported: Exported, builder: TensorRTRTX
) -> None:
    manifest = exported_of({"text_encoder": exported.graph}, recipe=exported.recipe.name)
    (source,), _ = plan_sources(
        exported.folder, manifest, attention=Native(), plugins=False,
        components=["text_encoder"],
    )  # fmt: skip
    built = builder.build(source, BuildOptions(TARGETS["rtx5090"]), Quiet())
    assert built.inputs[0].shape == (1, "length", TINY.d_model)
    profiles = range(len(TEXT_BUCKETS))
    by_profile = [[r for r in built.layers if r.profile == index] for index in profiles]
    assert len(by_profile[0]) > 10 * TINY.num_layers
    for records in by_profile:
        assert [r.nodes for r in records] == [r.nodes for r in by_profile[0]]
    coverage = check_coverage(built.layers, exported.graph.linears)
    assert coverage.lost == ()
    assert len(coverage.covered) == (6 * TINY.num_layers if exported.recipe.quantised else 0)
