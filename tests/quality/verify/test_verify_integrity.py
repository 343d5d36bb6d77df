"""Files that are not what the manifest says stop everything else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from fastwan.bundle import open_bundle
from fastwan.quality.verify.run import plan, run_checks, verify_bundle
from fastwan.quality.verify.subject import Subject
from testkit.stand_in_hub import as_fetched

pytestmark = pytest.mark.trt

READ_WEIGHTS = {"weights_bit_exact", "quantizer_recipe", "text_encoder"}


def flip_byte(root: Path) -> None:
    path = next((root / "dit").glob("*.engine"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(root: Path) -> None:
    path = root / "onnx" / "dit.data"
    path.write_bytes(path.read_bytes()[:-1])


def remove(root: Path) -> None:
    (root / "decoder" / "decoder.engine").unlink()


def add(root: Path) -> None:
    (root / "dit" / "extra.engine").write_bytes(b"")


def link(root: Path) -> None:
    path = root / "onnx" / "dit.onnx"
    moved = root.parent / "elsewhere.onnx"
    os.rename(path, moved)
    path.symlink_to(moved)


def garble_graph(root: Path) -> None:
    (root / "onnx" / "dit.onnx").write_bytes(b"not an ONNX file")


@pytest.mark.parametrize("fault", [flip_byte, truncate, remove, add, link, garble_graph])
def test_a_changed_file_fails_integrity_and_is_not_parsed(
    mutant: Any, fault: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(mutant.root)
    parsed: list[str] = []
    monkeypatch.setattr(onnx.ModelProto, "ParseFromString", parsed.append, raising=False)
    report = verify_bundle(mutant.root)
    assert not report.passed
    assert not any(check.passed for check in report.checks)
    integrity = report.checks[0]
    assert (integrity.name, integrity.value) == ("integrity", 1.0)
    subject = Subject(open_bundle(mutant.root, sizes=False))
    planned = [name for each in plan(subject) for name in each.names]
    assert [check.name for check in report.checks] == ["integrity", *planned]
    assert all(check.value is None for check in report.checks[1:])
    assert parsed == []


def test_a_bundle_with_a_hard_linked_backup_is_whole(mutant: Any, tmp_path: Path) -> None:
    """Libraries refuse such weights, as they cannot tell whose file it is; here hashes tell."""
    backup = Path(shutil.copytree(mutant.root, tmp_path / "backup", copy_function=os.link))
    assert (backup / "onnx" / "dit.data").stat().st_nlink > 1
    report = run_checks(Subject(open_bundle(backup)), READ_WEIGHTS)
    assert {check.name for check in report.checks} == {"integrity", *READ_WEIGHTS}
    assert report.passed


def test_a_bundle_in_the_hubs_cache_is_whole(bundle_dir: Path, tmp_path: Path) -> None:
    """Every file is a link there, and the hub adds files of its own."""
    snapshot = as_fetched(bundle_dir, tmp_path)
    (snapshot / "README.md").write_text("# A bundle")
    (snapshot / ".gitattributes").write_text("*.data filter=lfs")
    report = run_checks(Subject(open_bundle(snapshot)), READ_WEIGHTS)
    assert {check.name for check in report.checks} == {"integrity", *READ_WEIGHTS}
    assert report.passed
    (snapshot / "onnx" / "README.md").write_text("# Not the hub's")
    integrity = run_checks(Subject(open_bundle(snapshot)), set()).checks[0]
    assert integrity.note == "onnx/README.md: not listed"


def test_a_file_that_the_manifest_forgets_fails_integrity(mutant: Any) -> None:
    with mutant.manifest() as fields:
        del fields["files"]["onnx/dit.data"]
    (mutant.onnx / "dit.data").unlink()
    assert mutant.failing() == {"integrity"}


def test_an_empty_list_of_files_fails_integrity(mutant: Any) -> None:
    with mutant.manifest() as fields:
        fields["files"] = {}
    assert "integrity" in mutant.failing()


@pytest.mark.parametrize("location", ["../../outside.data", "/etc/hostname"])
def test_external_data_outside_the_bundle_is_never_read(mutant: Any, location: str) -> None:
    (mutant.root.parent / "outside.data").write_bytes(b"\0" * (1 << 22))
    with mutant.graph("dit.onnx") as graph:
        tensor = next(t for t in graph.initializer if t.external_data)
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    mutant.rehash()
    names = ("fp4_graph", "weights_bit_exact", "graph_fp32", "quantizer_bit_exact")
    assert mutant.failing(*names) == set(names)


def test_data_that_the_manifest_does_not_list_is_never_read(mutant: Any) -> None:
    data = mutant.onnx / "dit.data"
    moved = mutant.onnx / "tokenizer" / "other.data"
    moved.write_bytes(data.read_bytes())
    with mutant.graph("dit.onnx") as graph:
        for tensor in graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = "tokenizer/other.data"
    mutant.rehash()
    assert mutant.failing("weights_bit_exact") == {"integrity", "weights_bit_exact"}
