"""Export of the UMT5 encoder: ``text_encoder.onnx``, its data, embedding table and tokenizer.

One block is traced under fake tensors and repeated; the weights then go from the checkpoint to
the data file one at a time, so that the 5.7 B parameters of UMT5-XXL never lie in memory.
A recipe is for six of a block's seven linears (not ``wo``, see
`fastwan.export.models.umt5.FeedForward`): 4.0 GB with ``nvfp4`` in place of 9.3 GB.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import onnx_ir as ir
import torch

from fastwan.config import TextEncoderConfig
from fastwan.export import ops, schemas
from fastwan.export.cache import ExportCache, content_key
from fastwan.export.checkpoint import safetensors_io
from fastwan.export.composer import Composer
from fastwan.export.linear_names import linear_node, name_linears
from fastwan.export.models import umt5
from fastwan.export.onnx_io import DataWriter, TensorSource, attach, data_file, save_model
from fastwan.export.passes.graphs import clone, nbytes
from fastwan.export.passes.lower_for_onnxruntime import lower_for_onnxruntime
from fastwan.export.recipes import BF16, Recipe
from fastwan.export.tracing import trace
from fastwan.export.weights import tensor_digest
from fastwan.manifest import Graph, Linear, TensorSpec
from fastwan.parallel import in_order, one_torch_thread, workers
from fastwan.progress import Progress, Quiet, stage
from fastwan.staging import atomic_file

EMBEDDINGS, HIDDEN_STATES = "embeddings", "hidden_states"
EMBEDDING_FILE = "embedding.safetensors"
_GRAPH, _CPU_GRAPH = "text_encoder.onnx", "text_encoder.cpu.onnx"
_DATA = "text_encoder.data"
CPU_REFERENCE_BYTES = 2 << 30
"""Largest encoder that the CPU reference is written for: ONNX Runtime holds its weights in fp32."""

_BUCKETS = "relative_buckets"
_ROWS = 4096
_QUIET = Quiet()
_BF16 = BF16()


class EmbeddingSource(TensorSource, Protocol):
    """A checkpoint that also reads parts of a tensor."""

    def read_rows(self, name: str, begin: int, end: int) -> torch.Tensor:
        """Rows `begin` to `end` (exclusive) of a tensor."""


def build_text_encoder_graph(
    config: TextEncoderConfig, text_length: int, recipe: Recipe
) -> ir.Model:
    """The encoder without weights.

    Input ``embeddings`` [1, length, d_model] bf16 with a dynamic length of 1 to `text_length`,
    output ``hidden_states`` like it. Initializers have the checkpoint's names, save for
    ``relative_buckets``; the MatMul of weight ``<name>.weight`` is the node ``<name>/MatMul``.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    length = torch.export.Dim("length", min=1, max=text_length)
    with FakeTensorMode(allow_non_fake_inputs=True):
        # Any length but those that torch.export takes for constants or for each other.
        example = torch.empty(1, min(text_length, 7), config.d_model, dtype=torch.bfloat16)
        table = torch.empty(example.shape[1], example.shape[1], dtype=torch.int32)
        buckets = trace(
            umt5.Buckets(text_length).eval(),
            (example,),
            name="buckets",
            inputs=[EMBEDDINGS],
            outputs=["buckets"],
            dynamic_shapes=({1: length},),
        )
        block = trace(
            umt5.Block(config, recipe).eval(),
            (example, table),
            name="block",
            inputs=["hidden", "buckets"],
            outputs=["hidden_out"],
            dynamic_shapes=({1: length}, {0: length, 1: length}),
            translations=ops.translations() | recipe.translations(),
        )
        norm = trace(
            umt5.FinalNorm(config).eval(),
            (example,),
            name="norm",
            inputs=["hidden"],
            outputs=["normed"],
            dynamic_shapes=({1: length},),
        )
    compose = Composer("text_encoder", {schemas.DOMAIN: schemas.VERSION})
    hidden = compose.input(buckets, EMBEDDINGS)
    (cut,) = compose.add(buckets, "", {EMBEDDINGS: hidden}, "buckets.")
    for index in range(config.num_layers):
        bindings = {"hidden": hidden, "buckets": cut}
        (hidden,) = compose.add(block, f"encoder.block.{index}.", bindings, "block.")
    (hidden,) = compose.add(norm, "encoder.", {"hidden": hidden}, "norm.")
    name_linears(compose.graph, recipe)
    model, _ = recipe.expand(compose.model({HIDDEN_STATES: hidden}))
    if not any(node.domain == schemas.DOMAIN for node in model.graph):
        del model.graph.opset_imports[schemas.DOMAIN]
    return model


def targeted_linears(config: TextEncoderConfig, recipe: Recipe) -> tuple[Linear, ...]:
    """The linears that a recipe quantises, in the order of the graph."""
    if not recipe.quantised:
        return ()
    return tuple(
        Linear(name=name, node=linear_node(name), sources=(name,), format=recipe.name)
        for name in _targets(config)
    )


def _targets(config: TextEncoderConfig) -> list[str]:
    names = [f"layer.0.SelfAttention.{part}" for part in "qkvo"]
    names += ["layer.1.DenseReluDense.wi_0", "layer.1.DenseReluDense.wi_1"]
    return [f"encoder.block.{i}.{name}" for i in range(config.num_layers) for name in names]


@one_torch_thread()
def export_text_encoder(
    source: EmbeddingSource,
    config: TextEncoderConfig,
    folder: Path,
    *,
    tokenizer: Mapping[str, bytes],
    text_length: int = 512,
    recipe: Recipe = _BF16,
    cache: ExportCache | None = None,
    progress: Progress = _QUIET,
) -> tuple[Graph, tuple[str, ...], dict[str, str]]:
    """Write the text encoder and what stands around it.

    The embedding table stays outside the graph: the runtime gathers the rows of the prompt.

    Args:
        source: tensors of transformers' ``UMT5EncoderModel``.
        config: shape of the encoder.
        folder: existing folder for the files.
        tokenizer: its files by name, ``tokenizer.json`` among them.
        text_length: greatest number of tokens.
        recipe: of the linears; weights are quantised as its reference does.
        cache: where a finished graph is taken from and left.
        progress: told the bytes as they are written.

    Returns:
        The record of the graph; the further files: the embedding table (``weight``
        [vocab_size, d_model] bf16) and the tokenizer's; and the SHA-256 by initializer of what the
        reference quantiser makes of the checkpoint. Above `CPU_REFERENCE_BYTES` of weights there
        is no CPU reference.

    Raises:
        VerificationFailed: a recipe without a gate changes a weight.
    """
    facts = {"config": asdict(config), "length": text_length, "recipe": asdict(recipe)}
    key = content_key("text_encoder", facts)
    record = None if cache is None else cache.copy(key, folder)
    if record is not None:
        model = ir.load(folder / _GRAPH)
    else:
        model = build_text_encoder_graph(config, text_length, recipe)
    buckets = umt5.relative_buckets(config, text_length)
    with data_file(folder / _DATA) as writer:
        attach(model.graph.initializers[_BUCKETS], buckets, writer)
        digests = {_BUCKETS: tensor_digest(buckets)}
        targets = set(_targets(config))
        digests |= _attach_weights(model.graph, source, recipe, targets, writer, progress)
    has_cpu_file = sum(map(nbytes, model.graph.initializers.values())) <= CPU_REFERENCE_BYTES
    if record is None:
        save_model(model, folder / _GRAPH)
        if has_cpu_file:
            lowered, _ = lower_for_onnxruntime(clone(model))
            save_model(lowered, folder / _CPU_GRAPH)
        if cache is not None:
            names = (_GRAPH, _CPU_GRAPH) if has_cpu_file else (_GRAPH,)
            cache.put(key, {name: folder / name for name in names}, {})
    extra = (
        _copy_embedding(source, config, folder / EMBEDDING_FILE, progress),
        *_write_tokenizer(tokenizer, folder / "tokenizer"),
    )
    shape = (1, "length", config.d_model)
    graph = Graph(
        file=_GRAPH,
        data=(_DATA,),
        cpu_file=_CPU_GRAPH if has_cpu_file else None,
        inputs=(TensorSpec(name=EMBEDDINGS, dtype="bfloat16", shape=shape),),
        outputs=(TensorSpec(name=HIDDEN_STATES, dtype="bfloat16", shape=shape),),
        linears=targeted_linears(config, recipe),
    )
    return graph, extra, digests


def _stored_beside(graph: ir.Graph) -> dict[str, ir.Value]:
    """Weights that are to be written, by initializer, in the order of the data file.

    A finished graph, whose initializers are sorted by name, says where each lies.
    """

    def offset(value: ir.Value) -> int:
        known = value.const_value
        return (known.offset or 0) if isinstance(known, ir.ExternalTensor) else 0

    values = [
        value
        for name, value in graph.initializers.items()
        if name != _BUCKETS and isinstance(value.const_value, ir.ExternalTensor | None)
    ]
    return {str(value.name): value for value in sorted(values, key=offset)}


def _attach_weights(
    graph: ir.Graph,
    source: TensorSource,
    recipe: Recipe,
    targets: Collection[str],
    writer: DataWriter,
    progress: Progress,
) -> dict[str, str]:
    """Write every weight; returns the SHA-256 by initializer.

    Args:
        targets: linears that the recipe is for.
    """
    missing = _stored_beside(graph)

    def linear_of(name: str) -> str:
        return name.rpartition(".")[0]

    # What else is stored of a weight is made with it.
    names = [n for n in missing if linear_of(n) not in targets or n.endswith(".weight")]

    def make(name: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        linear = linear_of(name)
        if linear in targets:
            stored = recipe.stored(source.read(name), torch.bfloat16, reference=True)
            made = {f"{linear}.{part}": tensor for part, tensor in stored.items()}
        else:
            made = {name: source.read(name).to(torch.bfloat16)}
        return made, {key: tensor_digest(tensor) for key, tensor in made.items()}

    total = sum(map(nbytes, missing.values()))
    digests: dict[str, str] = {}
    with stage(progress, "text encoder weights", total, "bytes") as counter:
        for name, (tensors, found) in in_order(make, names, workers()):
            for key, tensor in tensors.items():
                attach(missing[key], tensor, writer)
            digests |= found
            counter.advance(sum(nbytes(missing[key]) for key in tensors), name)
    return digests


def _copy_embedding(
    source: EmbeddingSource, config: TextEncoderConfig, path: Path, progress: Progress
) -> str:
    shape = (config.vocab_size, config.d_model)
    spec = safetensors_io.TensorSpec(torch.bfloat16, shape)

    def chunks(counter: Progress) -> Iterator[memoryview]:
        for begin in range(0, config.vocab_size, _ROWS):
            rows = source.read_rows(
                umt5.EMBEDDING, begin, min(begin + _ROWS, config.vocab_size)
            ).to(torch.bfloat16)
            counter.advance(rows.nbytes)
            yield rows.contiguous().view(-1).view(torch.uint8).numpy().data

    with (
        stage(progress, "token embedding", spec.nbytes, "bytes") as counter,
        atomic_file(path) as temporary,
        safetensors_io.SafetensorsWriter(temporary, {"weight": spec}) as writer,
    ):
        writer.write_bytes("weight", chunks(counter))
    return path.name


def _write_tokenizer(files: Mapping[str, bytes], target: Path) -> Iterator[str]:
    target.mkdir()
    for name, data in files.items():
        (target / name).write_bytes(data)
        yield f"{target.name}/{name}"
