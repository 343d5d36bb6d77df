"""The tiny checkpoint, what is exported of it, and small graphs to run passes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
import torch

from fastwan import config
from fastwan.config import DiTConfig, VideoShape
from fastwan.export.attentions.sage3 import Sage3
from fastwan.export.checkpoint.reader import open_checkpoint
from fastwan.export.checkpoint.store import TensorStore
from fastwan.export.dit_onnx import export_dit
from fastwan.export.onnx_io import DataWriter, data_file
from fastwan.export.recipes import NVFP4
from fastwan.manifest import Graph
from testkit.once import Once
from testkit.tracing import quick_traces

Session = Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]]
HEADER = '<ir_version: 11, opset_import: ["" : 23, "fastwan" : 1, "trt" : 1]>'


@dataclass(frozen=True)
class Tiny:
    """The tiny checkpoint's transformer; 180 tokens, in two tiles of 128."""

    folder: Path
    weights: TensorStore
    config: DiTConfig
    shape: VideoShape


@dataclass(frozen=True)
class Exported:
    """A folder with ``dit.onnx`` and what `export_dit` returned."""

    folder: Path
    graphs: dict[str, Graph]
    digests: dict[str, str]

    def model(self) -> ir.Model:
        return ir.load(self.folder / "dit.onnx")


@dataclass(frozen=True)
class Inputs:
    """Inputs of a generation's step, rounded to bf16; the prompt has 20 tokens."""

    latents: torch.Tensor
    timestep: torch.Tensor
    text: torch.Tensor


@pytest.fixture(scope="session", autouse=True)
def trace_once() -> Iterator[None]:
    """Torch code of one shape is traced once; copies of the result are used."""
    with quick_traces():
        yield


@pytest.fixture(scope="session")
def tiny(tiny_checkpoint: Path) -> Tiny:
    checkpoint = open_checkpoint(tiny_checkpoint)
    shape = VideoShape(96, 160, num_frames=9)
    return Tiny(tiny_checkpoint, checkpoint.transformer, checkpoint.dit_config, shape)


@pytest.fixture(scope="session")
def exported(once: Once, tiny: Tiny) -> Exported:
    """The tiny transformer in NVFP4, quantised by the reference: ModelOpt is slow to import.

    ModelOpt makes the same files of it, which is a test of ``dit.onnx``.
    """

    def make(folder: Path) -> None:
        (folder / "dit").mkdir(parents=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(NVFP4, "convert", NVFP4.reference)
            graphs, digests = export_dit(
                tiny.weights, tiny.config, tiny.shape, NVFP4(), folder / "dit", attention=Sage3()
            )
        record = {"graphs": {n: g.model_dump() for n, g in graphs.items()}, "digests": digests}
        (folder / "record.json").write_text(json.dumps(record))

    folder = once("tiny-dit", make)
    record = json.loads((folder / "record.json").read_text())
    graphs = {name: Graph.model_validate(each) for name, each in record["graphs"].items()}
    return Exported(folder / "dit", graphs, record["digests"])


def step_inputs(config: DiTConfig, shape: VideoShape) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(shape.latents(config.in_channels), generator=generator)
    text = torch.randn(1, config.text_length, config.text_dim, generator=generator)
    text[:, 20:] = 0
    return Inputs(latents.bfloat16().float(), torch.tensor([857.0]), text.bfloat16().float())


def relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative L2 difference."""
    return float((value.double() - expected.double()).norm() / expected.double().norm())


def graph(text: str, **initializers: ir.TensorProtocol | None) -> ir.Model:
    """A model from ONNX text; inputs named in `initializers` become initializers of that value.

    None leaves an initializer without a value, as the exporter does while it traces.
    """
    model = ir.from_onnx_text(HEADER + text)
    for value in list(model.graph.inputs):
        if value.name in initializers:
            model.graph.inputs.remove(value)
            value.const_value = initializers[value.name]
            model.graph.initializers.add(value)
    return model


def tensor(value: torch.Tensor) -> ir.TensorProtocol:
    """A torch tensor, bf16 and e4m3 included, as a tensor of a graph."""
    kinds = {
        torch.bfloat16: ir.DataType.BFLOAT16,
        torch.float8_e4m3fn: ir.DataType.FLOAT8E4M3FN,
    }
    kind = kinds.get(value.dtype)
    if kind is None:
        return ir.tensor(value.numpy())
    raw = value.contiguous().view(torch.uint8 if value.dtype.itemsize == 1 else torch.uint16)
    return ir.Tensor(raw.numpy().view(kind.numpy()), dtype=kind)


def attach(model: ir.Model, tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Join initializers to data in a file, as the exporter does."""
    with data_file(folder / "attached.data") as writer:
        for name, value in tensors.items():
            target = model.graph.initializers.get(name)
            if target is not None:
                _write(target, value, writer)


def _write(target: ir.Value, value: torch.Tensor, writer: DataWriter) -> None:
    assert target.shape is not None
    shape = tuple(target.shape.numpy())
    target.const_value = writer.add(str(target.name), value, dtype=target.dtype, shape=shape)


def ort_session(model: ir.Model) -> Session:
    """A lowered graph as a function of its inputs, on ONNX Runtime."""
    ort = pytest.importorskip("onnxruntime")
    ir.external_data.load_to_model(model)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    wanted = {value.name for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]

    def run(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        feeds = {name: value.numpy() for name, value in inputs.items() if name in wanted}
        arrays = session.run(names, feeds)
        return {n: torch.from_numpy(np.asarray(a)) for n, a in zip(names, arrays, strict=True)}

    return run


def run_ort(model: ir.Model, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Outputs of a lowered graph on ONNX Runtime."""
    return ort_session(model)(inputs)


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """The helpers of this file."""
    return SimpleNamespace(
        graph=graph, tensor=tensor, attach=attach, run=run_ort, session=ort_session,
        relative=relative, inputs=step_inputs,
    )  # fmt: skip


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows that config.py asks for: a name in each table, and in a model's and a target's."""
    name = "made-up"
    monkeypatch.setitem(config.RECIPES, name, "a recipe that nothing implements")
    monkeypatch.setitem(config.ATTENTIONS, name, "an attention that nothing implements")
    target = config.TARGETS["rtx5090"]
    both = {"recipes": (*target.recipes, name), "attentions": (*target.attentions, name)}
    monkeypatch.setitem(config.TARGETS, "rtx5090", replace(target, **both))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
