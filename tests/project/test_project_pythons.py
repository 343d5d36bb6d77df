"""The script that tries the package on every Python: what fails, and what is skipped."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def pythons(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("pythons", root / "scripts" / "pythons.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fake_uv(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program of this name first on the path."""
    folder.mkdir()
    program = folder / "uv"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("script", "passed", "code"),
    [
        ("exit 0", True, 0),
        ("echo 'no wheels of torch' >&2; exit 1", False, 1),
        ("echo 'error sending request for url' >&2; exit 1", None, 0),
    ],
)
def test_only_what_was_tried_can_fail(
    pythons: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    script: str,
    passed: bool | None,
    code: int,
) -> None:
    fake_uv(tmp_path / "bin", f'case "$*" in *"python find"*) exit 1;; esac; {script}', monkeypatch)
    assert pythons.resolve("3.12").passed is passed
    assert pythons.main(["3.12"]) == code
    told = capsys.readouterr().out
    assert ("FAILED: no wheels of torch" in told) is (passed is False)
    assert ("skipped: no package index answers" in told) is (passed is None)
    assert "skipped: no interpreter" in told


def test_without_uv_everything_is_skipped(
    pythons: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    for outcome in (pythons.resolve("3.12"), pythons.run_there("3.12")):
        assert outcome == (None, "uv is not installed")


def test_the_versions_are_those_of_the_metadata(pythons: ModuleType) -> None:
    assert pythons.declared_versions() == ["3.11", "3.12", "3.13", "3.14"]
