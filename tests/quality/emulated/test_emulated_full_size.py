"""`verify --device emulated` on a device in host memory: what it sees, and what it misses not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastwan.plugins.regions.base import RegionOp
from fastwan.quality.emulated import checks, region_checks
from fastwan.quality.emulated.full_size import FullSize
from fastwan.quality.emulated.run import names
from testkit import operand_faults
from testkit.emulated_host import ReferenceKernels, opened
from testkit.stale_prompt import assert_stale_keys_show


@pytest.fixture(scope="module")
def full(tiny_bundle: Path) -> Iterator[FullSize]:
    """A run of the tiny bundle; read only."""
    run = opened(tiny_bundle)
    _ = run.velocities
    yield run
    run.close()


def test_a_whole_run_passes_and_tells_what_fp4_makes_of_the_video(full: FullSize) -> None:
    hidden = dict(full.watch.hidden)
    made, fp4, videos = checks.compare(full)
    full.watch.hidden.update(hidden)
    assert {check.name for check in made} == set(names(full.subject))
    assert all(check.passed for check in made), made
    assert {check.label for check in made} == {"emulated"}
    assert [figure.block for figure in fp4.blocks] == [0]
    assert [figure.step for figure in fp4.steps] == [0, 1, 2]
    # FP4 changes a block by more than the module's sensitivity, and frames by a visible amount.
    assert 0.05 < fp4.blocks[0].fp4 < 0.5
    assert fp4.psnr is not None
    assert 20 < fp4.psnr < 60
    assert fp4.ssim is not None
    assert 0.8 < fp4.ssim < 1
    plain, got = videos
    assert plain.shape == got.shape == (9, 96, 160, 3)
    np.testing.assert_array_equal(got, full.frames)


def test_one_launch_and_step_by_step_make_the_same_video(full: FullSize) -> None:
    latents = full._session.denoise(full.noises)
    np.testing.assert_array_equal(full.decode(latents), full.frames)
    assert full._session.eager_reason == ""


@pytest.mark.parametrize("fault", operand_faults.ALL)
def test_an_operand_that_is_not_the_bundles_fails(full: FullSize, fault: Any) -> None:
    assert checks.check_operands(full).passed
    name = "blocks.1.ffn.fc2/transposed/out"
    good = full.watch.operands[name]
    full.watch.operands[name] = fault(good)
    try:
        check = checks.check_operands(full)
    finally:
        full.watch.operands[name] = good
    assert not check.passed
    assert check.value is not None
    assert check.value >= 1


def test_operands_that_are_missing_fail(full: FullSize) -> None:
    name = "blocks.0.attn1.qkv/transposed/out"
    good = full.watch.operands.pop(name)
    try:
        assert not checks.check_operands(full).passed
    finally:
        full.watch.operands[name] = good
    assert checks.check_operands(full).passed


class NoMask(ReferenceKernels):
    """Attention that lets the padding take part."""

    def compute(self, region: RegionOp, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        given, (out,) = self.tensors(region, inputs, outputs)
        attributes: Any = region
        longer = attributes.__class__(
            attributes.batch,
            attributes.length,
            attributes.attributes.__class__(
                **{**vars(attributes.attributes), "num_tokens": attributes.length}
            ),
        )
        (made,) = longer.reference(*given)
        made[:, attributes.attributes.num_tokens :] = 0
        out.copy_(made)


class DirtyPadding(ReferenceKernels):
    """Attention that leaves something behind its rows."""

    def compute(self, region: RegionOp, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        super().compute(region, inputs, outputs)
        _, (out,) = self.tensors(region, inputs, outputs)
        out[:, -1, 0] = 1


class WrongTiles(ReferenceKernels):
    """Attention whose first two tiles of rows have changed places."""

    def compute(self, region: RegionOp, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        super().compute(region, inputs, outputs)
        _, (out,) = self.tensors(region, inputs, outputs)
        moved: Tensor = out[:, :64].clone()
        out[:, :64] = out[:, 64:128]
        out[:, 64:128] = moved


@pytest.mark.parametrize("fault", [NoMask, DirtyPadding, WrongTiles])
def test_a_kernel_that_computes_something_else_fails(
    full: FullSize, tiny_bundle: Path, fault: type[ReferenceKernels]
) -> None:
    assert all(check.passed for check in region_checks.check_regions(full))
    broken = opened(tiny_bundle, fault)
    assert not all(check.passed for check in region_checks.check_regions(broken))
    broken.close()


def test_a_region_that_was_not_launched_fails(full: FullSize) -> None:
    seen = full.watch.regions.pop()
    try:
        assert not all(check.passed for check in region_checks.check_regions(full))
    finally:
        full.watch.regions.append(seen)
    assert all(check.passed for check in region_checks.check_regions(full))


def test_keys_that_stay_from_another_prompt_show(
    full: FullSize, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_stale_keys_show(full, lambda: opened(tiny_bundle), monkeypatch)


def test_the_module_is_itself_again_after_a_trial(full: FullSize) -> None:
    def state() -> dict[str, Tensor]:
        held = full.reference.module.state_dict()
        return {name: value.float().clone() for name, value in held.items()}

    before = state()
    with full.reference.moved(1):
        moved = state()
    after = state()
    changed = [name for name in before if not torch.equal(moved[name], before[name])]
    assert changed
    assert all(name.endswith(("weight_scale_2", "qkv_scale")) for name in changed)
    assert all(torch.equal(after[name], before[name]) for name in before)
