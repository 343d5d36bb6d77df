"""Outcomes of the first load belong to the bundle, the library and the GPU that they came of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fastwan.bundle import Bundle
from fastwan.content_cache import ContentCache
from fastwan.manifest import Engine, FileRecord
from fastwan.runtime.device.first_load import FirstLoad, first_load
from fastwan.runtime.recording.machine import DeviceInfo
from fastwan.schema import Record
from testkit.manifests import manifest_of

GPU = DeviceInfo("RTX 5090", 120, "13.0", 32 << 30)


class Chosen(Record):
    """An outcome."""

    kernel: str


class Other(Record):
    """One of another form."""

    count: int


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTWAN_CACHE_DIR", str(tmp_path / "cache"))


def opened(tmp_path: Path, *, sha256: str = "0" * 64) -> Bundle:
    engine = Engine(file="e", component="dit", inputs=(), outputs=(), scratch_bytes=0)
    files = {"e": FileRecord(sha256=sha256, bytes=1)}
    return Bundle(tmp_path, manifest_of(engines={"e": engine}, files=files))


def library(tmp_path: Path, content: str = "a") -> Path:
    path = tmp_path / f"{content}.so"
    path.write_text(content)
    return path


@pytest.mark.parametrize(
    ("change", "known"),
    [(None, True), ("gpu", False), ("driver", False), ("library", False), ("engine", False)],
)
def test_an_outcome_belongs_to_all_it_depends_on(
    tmp_path: Path, change: str | None, known: bool
) -> None:
    first_load(opened(tmp_path), GPU, library(tmp_path)).keep("x", Chosen(kernel="ours"))
    gpu = GPU
    if change == "gpu":
        gpu = replace(GPU, name="RTX 5080")
    if change == "driver":
        gpu = replace(GPU, driver="13.1")
    bundle = opened(tmp_path, sha256=("1" if change == "engine" else "0") * 64)
    again = first_load(bundle, gpu, library(tmp_path, "b" if change == "library" else "a"))
    assert again.find("x", Chosen) == (Chosen(kernel="ours") if known else None)
    assert again.find("y", Chosen) is None


def test_an_outcome_is_replaced(tmp_path: Path) -> None:
    cache = ContentCache("runtime", tmp_path)
    for kernel in ("ours", "theirs"):
        FirstLoad(cache, {}).keep("x", Chosen(kernel=kernel))
        assert FirstLoad(cache, {}).find("x", Chosen) == Chosen(kernel=kernel)


def test_an_outcome_of_another_form_is_none(tmp_path: Path) -> None:
    cache = ContentCache("runtime", tmp_path)
    FirstLoad(cache, {}).keep("x", Other(count=3))
    assert FirstLoad(cache, {}).find("x", Other) == Other(count=3)
    assert FirstLoad(cache, {}).find("x", Chosen) is None


def test_a_damaged_outcome_is_none(tmp_path: Path) -> None:
    cache = ContentCache("runtime", tmp_path)
    FirstLoad(cache, {}).keep("x", Chosen(kernel="ours"))
    (file,) = (tmp_path / "runtime").rglob("outcome.json")
    file.write_text(json.dumps({"kernel": "else"}))
    assert FirstLoad(cache, {}).find("x", Chosen) is None
    FirstLoad(cache, {}).keep("x", Chosen(kernel="ours"))
    assert FirstLoad(cache, {}).find("x", Chosen) == Chosen(kernel="ours")


def test_without_a_cache_outcomes_are_kept_within_the_process() -> None:
    kept = FirstLoad(None, {})
    assert kept.find("x", Chosen) is None
    kept.keep("x", Chosen(kernel="ours"))
    assert kept.find("x", Chosen) == Chosen(kernel="ours")
