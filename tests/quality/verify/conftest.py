"""Copies of a real bundle with one thing changed and every hash brought up to date."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fastwan.bundle import open_bundle
from fastwan.files import sha256_file
from fastwan.manifest import MANIFEST
from fastwan.quality.verify.run import run_checks
from fastwan.quality.verify.subject import Subject
from testkit.tracing import quick_traces


@dataclass
class Mutant:
    """A copy of the bundle; `rehash` makes the manifest agree with its files again."""

    root: Path

    @property
    def onnx(self) -> Path:
        return self.root / "onnx"

    @contextmanager
    def manifest(self) -> Iterator[dict[str, Any]]:
        path = self.root / MANIFEST
        fields = json.loads(path.read_text())
        yield fields
        path.write_text(json.dumps(fields))

    @contextmanager
    def layers(self) -> Iterator[dict[str, Any]]:
        path = self.root / "layers.json"
        fields = json.loads(path.read_text())
        yield fields
        path.write_text(json.dumps(fields))

    @contextmanager
    def graph(self, file: str) -> Iterator[onnx.GraphProto]:
        model = onnx.load(self.onnx / file, load_external_data=False)
        yield model.graph
        (self.onnx / file).write_bytes(model.SerializeToString(deterministic=True))

    def weight(
        self, name: str, change: Callable[[np.ndarray], np.ndarray], file: str = "dit.onnx"
    ) -> str:
        """Replace the bytes of an external weight; returns their new digest."""
        model = onnx.load(self.onnx / file, load_external_data=False)
        (tensor,) = (t for t in model.graph.initializer if t.name == name)
        place = {entry.key: entry.value for entry in tensor.external_data}
        path, offset = self.onnx / place["location"], int(place.get("offset", 0))
        data = bytearray(path.read_bytes())
        raw = np.frombuffer(bytes(data[offset : offset + int(place["length"])]), np.uint8)
        new = np.ascontiguousarray(change(raw.copy())).tobytes()
        assert len(new) == raw.size
        assert new != raw.tobytes()
        data[offset : offset + len(new)] = new
        path.write_bytes(data)
        return hashlib.sha256(new).hexdigest()

    def forge_digest(self, name: str, digest: str) -> None:
        with self.manifest() as fields:
            fields["onnx"]["tensor_digests"][name] = digest

    def rehash(self) -> None:
        with self.manifest() as fields:
            for name in fields["files"]:
                path = self.root / name
                fields["files"][name] = {"sha256": sha256_file(path), "bytes": path.stat().st_size}

    def failing(self, *names: str, checkpoint: Any = None) -> set[str]:
        """Names of the checks that fail, of `names` and integrity."""
        subject = Subject(open_bundle(self.root), checkpoint)
        report = run_checks(subject, names)
        assert {check.name for check in report.checks} >= {"integrity", *names}
        failed = {check.name for check in report.checks if not check.passed}
        return failed & {"integrity", *names}


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
