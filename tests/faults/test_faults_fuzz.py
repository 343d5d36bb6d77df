"""Damaged copies of valid inputs: a short run of `scripts/fuzz_parsers.py`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
NAMES = (
    "safetensors", "sharded index", "state dict", "strict JSON", "manifest", "ONNX manifest",
    "ONNX guard", "transformer config", "text encoder config", "model index", "scheduler",
    "single file", "model card", "layer log",
    "layer records", "baseline", "request", "hub id", "ownership record", "video seal", "library",
    "export cache", "engine cache", "prompt cache",
)  # fmt: skip


@pytest.fixture(scope="module")
def script() -> ModuleType:
    sys.path.insert(0, str(SCRIPTS))
    try:
        return importlib.import_module("fuzz_parsers")
    finally:
        sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def table(
    script: ModuleType,
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, object]:
    made = script.harnesses(tiny_checkpoint, tiny_bundle, tmp_path_factory.mktemp("fuzz"))
    assert isinstance(made, dict)
    return made


@pytest.mark.parametrize("name", NAMES)
def test_only_the_projects_errors_escape_a_parser(
    script: ModuleType, table: dict[str, object], name: str
) -> None:
    assert set(table) == set(NAMES)
    score = script.fuzz(table[name], inputs=150, seed=1)
    assert score.escaped == {}
    assert score.counts.keys() <= {"taken", "refused"}
    assert score.counts.total() == 150


def test_an_exception_that_is_not_the_projects_is_counted(script: ModuleType) -> None:
    def parse(data: bytes) -> None:
        if data != b"valid":
            raise KeyError("name")

    score = script.fuzz(script.Harness(b"valid", parse), inputs=50, seed=1)
    assert score.counts["uncaught"] > 0
    assert list(score.escaped) == ["KeyError: 'name'"]


def test_an_input_that_takes_too_long_is_counted(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parse(data: bytes) -> None:
        while data != b"valid":
            pass

    monkeypatch.setattr(script, "SECONDS", 1)
    score = script.fuzz(script.Harness(b"valid", parse), inputs=1, seed=1)
    assert score.counts == {"hung": 1}
