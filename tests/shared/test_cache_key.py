"""The key of a pipeline's cache changes with what a build depends on, and with nothing else."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fastwan import cache_key as module
from fastwan.build import BuildSpec
from fastwan.cache_key import cache_key
from fastwan.cli import main
from fastwan.errors import BadInput
from fastwan.hub.ids import HubId

pytestmark = pytest.mark.trt


@pytest.fixture
def spec(tiny_checkpoint: Path, tmp_path: Path) -> BuildSpec:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
    checkpoint = shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    lora = tmp_path / "style.safetensors"
    lora.write_bytes(b"weights")
    return BuildSpec(str(checkpoint), tmp_path / "bundle", lora=(f"{lora}:0.5",))


@pytest.mark.parametrize(
    "change",
    [
        {"target": "rtx5080"},
        {"fusion": "none"},
        {"components": ("dit",)},
        {"height": 96},
        {"lora": ()},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_option_changes_the_key(spec: BuildSpec, change: dict[str, Any]) -> None:
    assert cache_key(spec) != cache_key(replace(spec, **change))


def test_where_things_lie_does_not_change_the_key(spec: BuildSpec, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(spec.checkpoint, moved)
    (moved / ".git").mkdir()
    (moved / ".git" / "HEAD").touch()
    other = replace(spec, checkpoint=str(moved), output=tmp_path / "x", force=True, use_cache=False)
    assert cache_key(spec) == cache_key(other)


@pytest.mark.parametrize("name", ["checkpoint/transformer/config.json", "style.safetensors"])
def test_an_edited_file_changes_the_key(spec: BuildSpec, tmp_path: Path, name: str) -> None:
    before = cache_key(spec)
    file = tmp_path / name
    content = file.read_bytes()
    file.write_bytes(content + b" ")
    assert cache_key(spec) != before
    file.write_bytes(content)
    assert cache_key(spec) == before


def test_a_renamed_file_changes_the_key(spec: BuildSpec) -> None:
    before = cache_key(spec)
    weights = next(Path(spec.checkpoint, "transformer").glob("*.safetensors"))
    weights.rename(weights.with_stem("renamed"))
    assert cache_key(spec) != before


def test_another_builder_changes_the_key(spec: BuildSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache_key(spec)
    backend = type(module.load_backend(spec.backend))
    monkeypatch.setattr(backend, "version", lambda self: "9.9")
    assert cache_key(spec) != before


def test_a_commit_of_the_hub_stands_for_its_files(
    spec: BuildSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Repository:
        id = HubId("owner/name")
        commit = "a" * 40

    monkeypatch.setattr("fastwan.hub.repository.open_repository", lambda *_: Repository)
    hub = replace(spec, checkpoint="owner/name")
    first = cache_key(hub)
    assert cache_key(hub) == first
    Repository.commit = "b" * 40
    assert cache_key(hub) != first


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"checkpoint": "absent"}, "does not exist"),
        ({"checkpoint": "x" * 5000}, "not a path"),
        ({"taehv": Path("absent.pth")}, r"cannot be read.*absent\.pth"),
    ],
    ids=["checkpoint", "path", "file"],
)
def test_what_is_not_there_is_said(spec: BuildSpec, change: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        cache_key(replace(spec, **change))


def test_the_command_prints_the_key_and_builds_nothing(spec: BuildSpec) -> None:
    options = ["--checkpoint", spec.checkpoint, "-o", str(spec.output), "--lora", spec.lora[0]]
    done = CliRunner().invoke(main, ["build-engine", *options, "--cache-key"])
    assert (done.exit_code, done.output) == (0, cache_key(spec) + "\n")
    assert not spec.output.exists()
