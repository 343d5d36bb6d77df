"""A bundle whose engines are given their weights: its video, and planted faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastwan.quality.emulated import checks
from fastwan.quality.emulated.full_size import FullSize
from fastwan.quality.emulated.run import names
from fastwan.quality.verify.report import Check
from fastwan.quality.verify.steps import rms
from fastwan.runtime.device.session import Platform
from testkit.emulated_host import opened

Change = Callable[[Platform], Platform]


@pytest.fixture(scope="module")
def full(data_bundle: Path) -> Iterator[FullSize]:
    run = opened(data_bundle)
    yield run
    run.close()


@pytest.fixture(scope="module")
def made(full: FullSize) -> dict[str, Check]:
    """Every check of a run without a fault."""
    return {check.name: check for check in checks.compare(full)[0]}


def test_a_whole_run_passes(full: FullSize, made: dict[str, Check]) -> None:
    assert set(made) == set(names(full.subject))
    assert all(check.passed for check in made.values()), made
    # Every weight was seen as it was multiplied, those that engines are given among them.
    linears = sum(len(graph.linears) for graph in full.subject.graphs.values())
    assert f"{linears} of {linears} weights" in made["emulated_operands"].note


def frames_of(bundle: Path, change: Change = lambda platform: platform) -> Any:
    run = opened(bundle, change=change)
    _ = run.velocities
    made = run.frames
    run.close()
    return made


def with_bindings(change: Callable[[str, dict[str, Any]], None]) -> Change:
    """A platform whose engines are bound to something else."""

    def changed(platform: Platform) -> Platform:
        def engines(bundle: Any) -> Any:
            made: Any = platform.open_engines(bundle)
            records = bundle.manifest.engines
            known: dict[str, Any] = {}
            for name, engine in made.items():
                if records[name].constants:
                    engine.enqueue = _changed(name, engine.enqueue, records[name], known, change)
            return made

        return replace(platform, open_engines=engines)

    return changed


def _changed(
    name: str, enqueue: Any, record: Any, known: dict[str, Any], change: Any
) -> Callable[..., None]:
    def patched(bindings: Any, *rest: Any) -> None:
        bound = dict(bindings)
        roles = {record.bindings[spec.name]: spec.name for spec in record.constants}
        known[name] = {role: bound[tensor] for role, tensor in roles.items()}
        change(name, known)
        enqueue(bound | {roles[role]: known[name][role] for role in roles}, *rest)

    return patched


def test_weights_as_data_make_the_same_video_but_for_the_models_own_sensitivity(
    full: FullSize, made: dict[str, Check], lifted_bundle: Path, data_bundle: Path
) -> None:
    limit = made["emulated_frames"].limit
    assert limit is not None
    inline = frames_of(lifted_bundle)
    assert 0 < rms(inline, full.frames) <= limit
    np.testing.assert_array_equal(frames_of(data_bundle), full.frames)


def another_blocks(name: str, known: dict[str, Any]) -> None:
    """Codes of the first GEMM of the same shape in the place of a later one's."""
    codes = known[name]["weight"]
    for other in known.values():
        if other["weight"][1] == codes[1]:
            known[name] = {**known[name], "weight": other["weight"]}
            return


def another_blocks_scales(name: str, known: dict[str, Any]) -> None:
    scales = known[name]["weight_scale"]
    for other in known.values():
        if other["weight_scale"][1] == scales[1]:
            known[name] = {**known[name], "weight_scale": other["weight_scale"]}
            return


@pytest.mark.parametrize("fault", [another_blocks, another_blocks_scales])
def test_another_weight_makes_another_video(
    full: FullSize,
    made: dict[str, Check],
    data_bundle: Path,
    fault: Callable[[str, dict[str, Any]], None],
) -> None:
    limit = made["emulated_frames"].limit
    assert limit is not None
    broken = opened(data_bundle, change=with_bindings(fault))
    _ = broken.velocities
    wrong, check = broken.frames, checks.check_operands(broken)
    broken.close()
    assert rms(full.frames, wrong) > limit
    assert made["emulated_operands"].passed
    assert not check.passed
