"""A copy of a bundle to change: every hash can be brought up to date again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fastwan.bundle import open_bundle
from fastwan.files import sha256_file
from fastwan.manifest import MANIFEST
from fastwan.quality.verify.run import run_checks
from fastwan.quality.verify.subject import Subject


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

    def lose_gemm(self, linear: str) -> int:
        """Let the records say that the builder took a bf16 kernel for a linear; tensors changed."""
        changed = 0
        with self.layers() as layers:
            for record in (record for records in layers.values() for record in records):
                if f"{linear}/MatMul" in record["nodes"] and record["kind"] == "gemm":
                    for tensor in record["inputs"] + record["constants"]:
                        if tensor["dtype"] == "FP4E2M1":
                            tensor["dtype"] = "BFloat16"
                            changed += 1
        self.rehash()
        return changed

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
