"""Bundles of every recipe and attention against the baselines that are committed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fastwan.config import ATTENTIONS, RECIPES
from fastwan.plugins.loader import checkout_root
from fastwan.quality.findings_text import render
from fastwan.quality.gate.baseline_file import Baseline
from fastwan.quality.gate.run import gate
from testkit.once import Once
from testkit.tiny_bundles import tiny_bundles

STAGES = ("static", "schedule", "predicted")
NAMES = ("nvfp4-sage3", "nvfp4-sage3-all", "nvfp4-sage2", "nvfp4-native", "fp8-fp8", "bf16-native")


@pytest.fixture(scope="module")
def folder() -> Path:
    root = checkout_root()
    if root is None:
        pytest.skip("not a source checkout")
    return Path(root, "benchmarks", "baselines")


@pytest.fixture
def bundles(
    once: Once, tiny_checkpoint: Path, tiny_bundle: Path, lifted_bundle: Path
) -> dict[str, Callable[[], Path]]:
    return tiny_bundles(once, tiny_checkpoint, tiny_bundle, lifted_bundle)


@pytest.mark.trt
@pytest.mark.parametrize("name", NAMES)
def test_no_bundle_is_worse_than_its_baseline(
    bundles: dict[str, Callable[[], Path]], folder: Path, name: str
) -> None:
    report = gate(bundles[name](), folder / f"{name}.json", stages=STAGES)
    assert report.exit_code == 0, (
        f"{render(report.findings)}\nif that is meant, while pytest keeps the bundle: "
        f"{report.rewrite}"
    )
    assert {finding.stage for finding in report.findings} == {"baseline", *STAGES}


def test_there_is_a_baseline_for_every_recipe_and_attention(folder: Path) -> None:
    baselines = {path.stem: Baseline.read(path) for path in folder.glob("*.json")}
    assert baselines.keys() == set(NAMES)
    assert {each.cohort["attention"] for each in baselines.values()} == set(ATTENTIONS)
    assert {each.cohort["recipe"] for each in baselines.values()} == set(RECIPES)


@pytest.mark.parametrize("name", NAMES)
def test_a_committed_baseline_is_of_no_machine_and_not_red(folder: Path, name: str) -> None:
    path = folder / f"{name}.json"
    baseline = Baseline.read(path)
    assert baseline.stages.keys() >= {"static", "predicted"}
    assert all(baseline.stages.values())
    assert (baseline.gpu, baseline.clocks, baseline.red) == ({}, {}, ())
    as_written = json.dumps(json.loads(path.read_text()), indent=1, sort_keys=True) + "\n"
    assert path.read_text() == as_written
