"""Committed figures of the attention: of the sources as they are, and as the pages tell them."""

from __future__ import annotations

import importlib.util
import json
import shutil
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def figure_sources(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "figure_sources", root / "scripts" / "figure_sources.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def records(root: Path) -> dict[str, dict[str, Any]]:
    """Items of the committed records that say what they were made from, by file and item."""
    found = {}
    for path in sorted((root / "benchmarks").glob("*.json")):
        for name, item in json.loads(path.read_text(encoding="utf-8")).get("items", {}).items():
            if "sources" in item:
                found[f"{path.name}: {name}"] = item
    return found


def test_no_figure_is_older_than_its_sources(
    records: dict[str, dict[str, Any]], figure_sources: ModuleType
) -> None:
    assert records
    stale = [
        name
        for name, record in records.items()
        if record["sources"] != figure_sources.sources_now(record["sources"])
    ]
    assert stale == [], (
        "run scripts/first_contact.py, emulated_video.py or emulated_gate.py on such a GPU again"
    )


@pytest.mark.parametrize("change", ["content", "name", "added", "removed", "none"])
def test_each_change_of_a_source_is_seen(
    tmp_path: Path, figure_sources: ModuleType, root: Path, change: str
) -> None:
    folder = tmp_path / "plugins"
    shutil.copytree(root / "plugins", folder, ignore=shutil.ignore_patterns("__pycache__"))
    shim = next(path for path in sorted((folder / "csrc" / "shims").rglob("*")) if path.is_file())
    if change == "content":
        shim.write_bytes(shim.read_bytes() + b" ")
    elif change == "name":
        shim.rename(shim.with_name("renamed.h"))
    elif change == "added":
        shim.with_name("added.h").touch()
    elif change == "removed":
        shim.unlink()
    else:
        (folder / "loader.py").touch()
    assert (figure_sources.sources(folder) == figure_sources.sources()) is (change == "none")


def test_every_committed_item_passed(records: dict[str, dict[str, Any]]) -> None:
    assert records
    assert all(record["passed"] for record in records.values())


def test_the_attention_passes_its_limits(records: dict[str, dict[str, Any]]) -> None:
    found = [record for record in records.values() if "boundaries" in record]
    assert found
    for record in found:
        swept, single = record["boundaries"], record["shapes"]
        assert {item["exact_max"] for item in swept} == {False, True}
        assert {item["exact_max"] for item in single if item["tokens"] == 32760} == {False, True}
        implementations, limit = {"sage3", "flashinfer"}, record["limit_of_relative_l2"]
        assert limit <= 2e-4
        assert {item["implementation"] for item in swept} == implementations
        assert {item["implementation"] for item in single} == implementations
        for item in swept:
            assert item["largest_relative_l2"] < limit
        for item in single:
            assert item["relative_l2"] < limit
        for mode in record["full_size"]["maxima"].values():
            assert mode.keys() == implementations
            for times in mode.values():
                assert times["replays_identical_to_enqueued"]
                assert times["bytes_taken_by_a_call"] == 0


def test_the_gate_tells_a_slower_step_from_an_unchanged_bundle(
    records: dict[str, dict[str, Any]],
) -> None:
    record = records["h100_gate.json: gate"]
    assert len(record["unchanged"]) >= 10
    assert not any(run["exit_code"] or run["failing"] for run in record["unchanged"])
    passes, caught = record["planted"]
    assert passes["share"] < caught["share"]
    assert passes["exit_code"] == 0
    assert caught["exit_code"] == 5
    assert caught["failing"] == {"times": [caught["step"]]}


def test_sage_attention2_passes_its_limits(records: dict[str, dict[str, Any]]) -> None:
    record = records["h100_sage2.json: sage2"]
    granularities, full = {"thread", "warp"}, record["full_size"]
    assert [part["offset"] for part in full["inputs"]] == [0.0, 4.0]
    compared = list(record["compared"])
    modes = {(item["granularity"], item["row_scaled"]) for item in compared}
    assert modes == set(product(granularities, (False, True)))
    assert {item["tokens"] for item in compared if item["row_scaled"]} >= {1, 32760}
    for part in full["inputs"]:
        errors = part["error_against_exact_attention"]
        for each in granularities:
            compared.append(part[each])
            own = errors[f"int8 and e4m3, {each}"]
            assert errors["bf16 flash"] < own < errors["fp4"] / 4
    for item in compared:
        assert item["operand_bytes_that_differ"] == 0
        assert item["relative_l2"] < record["limit_of_relative_l2"]
        assert item["padding_is_zero"]
    assert full["times"]["share_of_flash"] >= 1
    assert full["replay"]["replays_identical_to_enqueued"]
    assert full["replay"]["bytes_taken_by_a_call"] == 0
