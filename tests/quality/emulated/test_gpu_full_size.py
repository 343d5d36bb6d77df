"""`verify --device emulated` on a Hopper GPU: the tiny bundle passes, and each fault fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastwan.bundle import open_bundle
from fastwan.plugins.regions.base import RegionOp
from fastwan.quality.emulated import checks, region_checks
from fastwan.quality.emulated.full_size import FullSize
from fastwan.quality.emulated.run import cuda_setting, names
from fastwan.quality.emulated.watch import region_tensors
from fastwan.quality.verify.subject import Subject
from fastwan.runtime.recording.machine import Kernels
from testkit import operand_faults
from testkit.stale_prompt import assert_stale_keys_show

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
        reason="no CUDA GPU of compute capability 9.0",
    ),
]
Change = Callable[[Tensor], None]


class Changed:
    """The library's kernels, and something done to a region's output behind them."""

    def __init__(self, kernels: Kernels, at: Any, change: Change) -> None:
        self._kernels, self._at, self._change = kernels, at, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernels, name)

    def region(
        self,
        region: RegionOp,
        inputs: Sequence[int],
        outputs: Sequence[int],
        workspace: int,
        workspace_bytes: int,
        stream: int,
    ) -> None:
        self._kernels.region(region, inputs, outputs, workspace, workspace_bytes, stream)
        _, (out,) = region_tensors(self._at, region, inputs, outputs)
        with self._at.on(stream):
            self._change(out)


class Unmasked(Changed):
    """Regions launched as if the rows behind the tokens were tokens.

    What that leaves behind them is hidden: its effect on the true rows is to show.
    """

    def region(
        self,
        region: RegionOp,
        inputs: Sequence[int],
        outputs: Sequence[int],
        workspace: int,
        workspace_bytes: int,
        stream: int,
    ) -> None:
        given: Any = region
        tokens = given.attributes.num_tokens
        longer = replace(given, attributes=replace(given.attributes, num_tokens=given.length))
        super().region(longer, inputs, outputs, workspace, workspace_bytes, stream)
        _, (out,) = region_tensors(self._at, region, inputs, outputs)
        with self._at.on(stream):
            out[:, tokens:] = 0


def nothing(_out: Tensor) -> None:
    """Leave the output as it is."""


def swap_tiles(out: Tensor) -> None:
    """Let the first two tiles of rows change places."""
    out[:, :128] = out[:, :128].roll(64, 1)


def dirty_padding(out: Tensor) -> None:
    """Leave something behind the last row."""
    out[:, -1, 0] = 1


def opened(bundle: Path, change: Change | None = None, kind: type[Changed] = Changed) -> FullSize:
    subject = Subject(open_bundle(bundle))
    setting = cuda_setting(subject.bundle)
    if change is not None:
        kernels = kind(setting.platform.kernels, setting.at, change)
        setting = replace(setting, platform=replace(setting.platform, kernels=kernels))
    return FullSize(subject, setting)


@pytest.fixture(scope="module")
def full(tiny_bundle: Path) -> Iterator[FullSize]:
    """A run of the tiny bundle; read only."""
    run = opened(tiny_bundle)
    _ = run.velocities
    yield run
    run.close()


def test_a_whole_run_passes(full: FullSize) -> None:
    hidden = dict(full.watch.hidden)
    made, fp4, videos = checks.compare(full)
    full.watch.hidden.update(hidden)
    assert full.subject.manifest.target == "rtx5090"
    assert {launch.region.on(170) for launch in full.watch.launches} == {
        launch.region for launch in full.watch.launches
    }
    assert {check.name for check in made} == set(names(full.subject))
    assert all(check.passed for check in made), made
    assert {check.label for check in made} == {"emulated"}
    assert [figure.step for figure in fp4.steps] == [0, 1, 2]
    np.testing.assert_array_equal(videos[1], full.frames)


@pytest.mark.parametrize("fault", operand_faults.ALL)
def test_an_operand_that_is_not_the_bundles_fails(full: FullSize, fault: Any) -> None:
    name = "blocks.1.ffn.fc2/transposed/out"
    good = full.watch.operands[name]
    full.watch.operands[name] = fault(good)
    try:
        assert not checks.check_operands(full).passed
    finally:
        full.watch.operands[name] = good
    assert checks.check_operands(full).passed


@pytest.mark.parametrize(
    ("change", "kind", "passes"),
    [
        (nothing, Changed, True),
        (swap_tiles, Changed, False),
        (dirty_padding, Changed, False),
        (nothing, Unmasked, False),
    ],
)
def test_what_a_region_makes_is_held_to_its_reference(
    tiny_bundle: Path, change: Change, kind: type[Changed], passes: bool
) -> None:
    run = opened(tiny_bundle, change, kind)
    try:
        (check,) = region_checks.check_regions(run)
        assert check.passed is passes
    finally:
        run.close()


def test_keys_that_stay_from_another_prompt_show(
    full: FullSize, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_stale_keys_show(full, lambda: opened(tiny_bundle), monkeypatch)
