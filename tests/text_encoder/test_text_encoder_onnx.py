"""The exported text encoder: reproducible, streamed, and the same as transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file

from fastwan.bundle import Graph
from fastwan.config import TextEncoderConfig
from fastwan.errors import BadInput
from fastwan.export import text_encoder_onnx
from fastwan.export.checkpoint.names import expected_text_encoder_tensors
from fastwan.export.checkpoint.synthetic_files import tokenizer_files
from fastwan.export.models.umt5 import UMT5Encoder, relative_buckets
from fastwan.export.onnx_io import save_model, torch_tensor
from fastwan.export.passes.lower_for_onnxruntime import lower_for_onnxruntime
from fastwan.export.text_encoder_onnx import build_text_encoder_graph, export_text_encoder

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
    folder: Path
    graph: Graph
    extra_files: tuple[str, ...]
    weights: Weights


def _tokenizer(folder: Path) -> Path:
    folder.mkdir()
    for name, fields in tokenizer_files().items():
        (folder / name).write_text(json.dumps(fields), encoding="utf-8")
    (folder / "notes.txt").write_text("not the tokenizer's", encoding="utf-8")
    return folder


def _export(folder: Path) -> Exported:
    weights, target = Weights(), folder / "bundle"
    target.mkdir()
    tokenizer = _tokenizer(folder / "tokenizer")
    graph, extra = export_text_encoder(weights, TINY, target, tokenizer_dir=tokenizer)
    return Exported(target, graph, extra, weights)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    rows = pytest.MonkeyPatch()
    rows.setattr(text_encoder_onnx, "_ROWS", 100)  # no divisor of the vocabulary
    try:
        return _export(tmp_path_factory.mktemp("text_encoder"))
    finally:
        rows.undo()


def test_files_and_record(exported: Exported) -> None:
    folder, graph, extra, _ = exported
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert files == {graph.file, graph.cpu_file, *graph.data, *extra}
    assert {"embedding.safetensors", "tokenizer/tokenizer.json"} <= set(extra)
    assert "tokenizer/notes.txt" not in files
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


def test_data_holds_the_checkpoint(exported: Exported) -> None:
    folder, graph, _, weights = exported
    initializers = ir.load(folder / graph.file).graph.initializers
    for name, expected in weights.state.items():
        if name != "shared.weight":
            value = initializers[name].const_value
            assert value is not None
            assert torch.equal(torch_tensor(value), expected), name
    table = initializers["relative_buckets"].const_value
    assert table is not None
    assert np.array_equal(table.numpy(), relative_buckets(TINY, 512).numpy())
    assert "shared.weight" not in initializers


def test_weights_are_read_once_and_the_embedding_in_pieces(exported: Exported) -> None:
    folder, _, _, weights = exported
    assert sorted(weights.reads) == sorted(set(weights.names()) - {"shared.weight"})
    assert weights.most_rows == 100
    embedding = load_file(folder / "embedding.safetensors")
    assert list(embedding) == ["weight"]
    assert torch.equal(embedding["weight"], weights.state["shared.weight"])


def test_second_export_is_the_same_bytes(exported: Exported, tmp_path: Path) -> None:
    again = _export(tmp_path)
    assert (again.graph, again.extra_files) == (exported.graph, exported.extra_files)
    graph = again.graph
    assert graph.cpu_file is not None
    for file in (graph.file, graph.cpu_file, *graph.data, *again.extra_files):
        assert (again.folder / file).read_bytes() == (exported.folder / file).read_bytes(), file
    for file in (graph.file, graph.cpu_file):
        content = (again.folder / file).read_bytes()
        for trace in (str(tmp_path), str(Path(__file__).parent), "site-packages", ".py"):
            assert trace.encode() not in content


def test_one_attention_node_a_block_and_named_linears() -> None:
    nodes = list(build_text_encoder_graph(TINY).graph)
    assert sum(node.op_type == "Attention" for node in nodes) == TINY.num_layers
    names = {node.name for node in nodes if node.op_type == "MatMul"}
    weights = {n for n in expected_text_encoder_tensors(TINY) if n.startswith("encoder.block")}
    linears = {n for n in weights if "norm" not in n and "bias" not in n}
    assert names == {n.removesuffix(".weight") + "/MatMul" for n in linears}
    assert len(names) == 7 * TINY.num_layers


def _module(weights: Weights, dtype: torch.dtype) -> UMT5Encoder:
    encoder = UMT5Encoder(TINY, dtype=dtype).eval()
    encoder.load_state_dict({name: value.to(dtype) for name, value in weights.state.items()})
    return encoder


def _relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    return float((value.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("length", [1, 2, 37, 512])
def test_onnx_runtime_equals_the_module(exported: Exported, length: int) -> None:
    ort = pytest.importorskip("onnxruntime")
    folder, graph, _, weights = exported
    assert graph.cpu_file is not None
    session = ort.InferenceSession(str(folder / graph.cpu_file), providers=["CPUExecutionProvider"])
    tokens = torch.randint(0, 320, (1, length), generator=torch.Generator().manual_seed(1))
    embeddings = torch.nn.functional.embedding(tokens, weights.state["shared.weight"])
    (hidden,) = session.run(None, {"embeddings": embeddings.float().numpy()})
    assert hidden.shape == (1, length, TINY.d_model)
    exact = _module(weights, torch.float32)(tokens)
    rounding = _relative(_module(weights, torch.bfloat16)(tokens), exact)
    assert 0 < rounding < 4e-2
    assert _relative(torch.from_numpy(hidden), exact) < 1.5 * rounding


def test_without_rounding_it_is_the_fp32_module(exported: Exported, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    folder, graph, _, weights = exported
    model, _ = lower_for_onnxruntime(ir.load(folder / graph.file), rounding=False)
    shutil.copy(folder / graph.data[0], tmp_path)
    save_model(model, tmp_path / "exact.onnx")
    session = ort.InferenceSession(str(tmp_path / "exact.onnx"), providers=["CPUExecutionProvider"])
    tokens = torch.randint(0, 320, (1, 37), generator=torch.Generator().manual_seed(1))
    embeddings = torch.nn.functional.embedding(tokens, weights.state["shared.weight"])
    (hidden,) = session.run(None, {"embeddings": embeddings.float().numpy()})
    assert _relative(torch.from_numpy(hidden), _module(weights, torch.float32)(tokens)) < 1e-5


def test_prompt_to_embeddings_equals_transformers(exported: Exported) -> None:
    """Tokenise, gather, encode at the true length: as transformers with a padded, masked batch."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("onnxruntime")
    from fastwan.runtime.ort_executor import OnnxRuntimeExecutor
    from fastwan.runtime.text import EmbeddingTable, TextEncoder, load_tokenizer

    folder, graph, _, weights = exported
    assert graph.cpu_file is not None
    tokenizer = load_tokenizer(folder / "tokenizer/tokenizer.json", 64)
    table = EmbeddingTable(folder / "embedding.safetensors")
    encoder = TextEncoder(tokenizer, table, OnnxRuntimeExecutor(folder / graph.cpu_file), 64)
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
    assert _relative(embeddings[:, : len(tokens)], expected) < 2e-2
    assert not embeddings[:, len(tokens) :].any()


@pytest.mark.parametrize("missing", [False, True])
def test_tokenizer_must_be_there(tmp_path: Path, missing: bool) -> None:
    tokenizer = _tokenizer(tmp_path / "tokenizer")
    target = tmp_path / "bundle"
    target.mkdir()
    if missing:
        (tokenizer / "tokenizer.json").unlink()
        with pytest.raises(BadInput, match=r"tokenizer\.json is missing"):
            export_text_encoder(Weights(), TINY, target, tokenizer_dir=tokenizer)
        assert list(target.iterdir()) == []
    else:
        export_text_encoder(Weights(), TINY, target, tokenizer_dir=tokenizer)


def test_unknown_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="int3"):
        export_text_encoder(Weights(), TINY, tmp_path, tokenizer_dir=tmp_path, recipe="int3")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.trt
def test_tensorrt_rtx_builds_it_for_every_length(exported: Exported) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    log = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    path = exported.folder / exported.graph.file
    assert parser.parse_from_file(str(path)), parser.get_error(0).desc()
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM120, 0)
    profile = builder.create_optimization_profile()
    lengths = [(1, length, TINY.d_model) for length in (1, 64, 512)]
    profile.set_shape("embeddings", *lengths)
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None
