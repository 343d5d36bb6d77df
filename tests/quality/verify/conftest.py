"""Copies of a real bundle with one thing changed and every hash brought up to date."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from testkit.mutant import Mutant
from testkit.tracing import quick_traces


@pytest.fixture(scope="session", autouse=True)
def _trace_once() -> Iterator[None]:
    """Torch code of one shape is traced once for all bundles; copies of the result are used."""
    with quick_traces():
        yield


@pytest.fixture(scope="session")
def checkpoint(tiny_checkpoint: Path) -> Any:
    from fastwan.export.checkpoint.reader import open_checkpoint

    return open_checkpoint(tiny_checkpoint)


@pytest.fixture(scope="session")
def bundle_dir(tiny_bundle: Path) -> Path:
    """A bundle of all components, built by the real tools."""
    return tiny_bundle


@pytest.fixture
def mutant(bundle_dir: Path, tmp_path: Path) -> Mutant:
    """A copy to change."""
    return Mutant(Path(shutil.copytree(bundle_dir, tmp_path / "mutant")))


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """Helpers of this file."""

    def named(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
        (node,) = (node for node in graph.node if node.name == name)
        return node

    def set_scalar(graph: onnx.GraphProto, name: str, value: float) -> None:
        (tensor,) = (t for t in graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(np.array(value, np.float32), name))

    return SimpleNamespace(named=named, set_scalar=set_scalar)
