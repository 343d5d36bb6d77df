"""A tiny checkpoint, the command line in a process of its own, three blocks of the 1.3 B model."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
import pytest
import torch

from fastwan.config import DiTConfig, VideoShape
from fastwan.export.checkpoint.reader import Checkpoint, open_checkpoint
from fastwan.export.dit_graph import build_dit_graph
from fastwan.export.onnx_io import data_file
from fastwan.export.passes.graphs import nbytes
from fastwan.export.recipes import NVFP4
from testkit.tracing import quick_traces


@pytest.fixture(scope="session", autouse=True)
def trace_once() -> Iterator[None]:
    """Torch code of one shape is traced once; copies of the result are used."""
    with quick_traces():
        yield


@pytest.fixture(scope="session")
def tiny_folder(tiny_checkpoint: Path) -> Path:
    return tiny_checkpoint


@pytest.fixture(scope="session")
def tiny(tiny_checkpoint: Path) -> Checkpoint:
    return open_checkpoint(str(tiny_checkpoint), components=("dit",))


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a child process whose cache is its own."""
    return {**os.environ, "FASTWAN_CACHE_DIR": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def command() -> list[str]:
    return [sys.executable, "-m", "fastwan.cli"]


CONFIG = DiTConfig(num_layers=3)
ONE = ".qkv.weight_scale_2"
"""Of a merged weight, whose three true scales the attention applies."""


def _fill(model: ir.Model, path: Path) -> None:
    """Give every weight random bytes of its type that are finite numbers."""
    generator = torch.Generator().manual_seed(0)
    with data_file(path) as writer:
        for name, value in model.graph.initializers.items():
            if value.const_value is not None:
                continue
            assert value.dtype is not None
            assert value.shape is not None
            size = nbytes(value)
            if value.dtype == ir.DataType.FLOAT:
                raw = torch.rand(size // 4, generator=generator).add_(0.5)
                if name.endswith(ONE):
                    raw.fill_(1)
            elif value.dtype == ir.DataType.BFLOAT16:
                raw = torch.rand(size // 2, generator=generator).bfloat16()
            else:
                raw = torch.randint(40, 60, (size,), generator=generator, dtype=torch.uint8)
            shape = tuple(value.shape.numpy())
            value.const_value = writer.add(name, raw, dtype=value.dtype, shape=shape)


@pytest.fixture(scope="package")
def graph(tmp_path_factory: pytest.TempPathFactory) -> tuple[ir.Model, Path]:
    pytest.importorskip("tensorrt_rtx")
    folder = tmp_path_factory.mktemp("wide")
    model = build_dit_graph(CONFIG, VideoShape(), NVFP4())
    _fill(model, folder / "dit.data")
    return model, folder
