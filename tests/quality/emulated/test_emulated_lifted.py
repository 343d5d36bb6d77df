"""A bundle with kernels of the project's own between all GEMMs: its video, and planted faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastwan.plugins.glue_reference import few_keys
from fastwan.plugins.lifted import KEY_BIAS, KEY_TILES
from fastwan.plugins.regions.base import RegionOp
from fastwan.quality.emulated import checks, region_checks
from fastwan.quality.emulated.full_size import FullSize
from fastwan.quality.emulated.run import names
from fastwan.quality.verify.report import Check
from fastwan.quality.verify.steps import rms
from fastwan.runtime.device.session import Platform
from fastwan.runtime.emulated.engines import Torch
from testkit.emulated_host import CPU, ReferenceKernels, opened

Change = Callable[[Platform], Platform]


@pytest.fixture(scope="module")
def full(lifted_bundle: Path) -> Iterator[FullSize]:
    run = opened(lifted_bundle)
    yield run
    run.close()


@pytest.fixture(scope="module")
def made(full: FullSize) -> dict[str, Check]:
    """Every check of a run without a fault."""
    return {check.name: check for check in checks.compare(full)[0]}


def test_a_whole_run_passes(full: FullSize, made: dict[str, Check]) -> None:
    assert set(made) == set(names(full.subject))
    assert all(check.passed for check in made.values()), made
    kinds = {name.removeprefix("emulated_regions_") for name in made if "_regions_" in name}
    assert len(kinds) == 7
    # The exact kinds by their bytes, and nothing but the prompt's own numbers of keys.
    exact = kinds - {"CrossAttention", "SageAttention3"}
    assert {made[f"emulated_regions_{op}"].limit for op in exact} == {0.0}
    assert made["emulated_prompt"].note == f"{KEY_BIAS}, {KEY_TILES}"


def test_both_ways_of_fusing_make_the_same_video_but_for_the_models_own_sensitivity(
    full: FullSize, made: dict[str, Check], tiny_bundle: Path, lifted_bundle: Path
) -> None:
    plain = opened(tiny_bundle)
    np.testing.assert_array_equal(plain.text, full.text)
    _ = plain.velocities
    frames = plain.frames
    plain.close()
    limit = made["emulated_frames"].limit
    assert limit is not None
    assert 0 < rms(frames, full.frames) <= limit
    broken = opened(lifted_bundle, SwappedNibbles)
    _ = broken.velocities
    wrong = broken.frames
    broken.close()
    assert rms(frames, wrong) > limit


class SwappedNibbles(ReferenceKernels):
    """GELU's codes with the odd element in the low nibble."""

    def compute(self, region: RegionOp, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        super().compute(region, inputs, outputs)
        if region.op == "GeluQuantize":
            codes = self.tensors(region, inputs, outputs)[1][0]
            codes.copy_((codes << 4) | (codes >> 4))


class WrongScaleRow(ReferenceKernels):
    """One row of the norm's scales in the place of the row before it."""

    def compute(self, region: RegionOp, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        super().compute(region, inputs, outputs)
        if region.op == "ResidualNormQuantize":
            scales = self.tensors(region, inputs, outputs)[1][-1].view(torch.uint8)
            scales[:, 7] = scales[:, 8]


class FewerKeys(ReferenceKernels):
    """Cross-attention without the key that stands for the rows behind the prompt."""

    def compute(self, region: RegionOp, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        if region.op != "CrossAttention":
            super().compute(region, inputs, outputs)
            return
        given, got = self.tensors(region, inputs, outputs)
        bias = given[5].clone()
        bias[bias > 0] = -torch.inf
        for out, value in zip(got, region.reference(*given[:5], bias, given[6]), strict=True):
            out.copy_(value)


@pytest.mark.parametrize(
    ("fault", "op"),
    [
        (SwappedNibbles, "GeluQuantize"),
        (WrongScaleRow, "ResidualNormQuantize"),
        (FewerKeys, "CrossAttention"),
    ],
)
def test_a_kernel_that_writes_something_else_fails_by_its_kind(
    lifted_bundle: Path, made: dict[str, Check], fault: type[ReferenceKernels], op: str
) -> None:
    name = f"emulated_regions_{op}"
    assert made[name].passed
    broken = opened(lifted_bundle, fault)
    found = {check.name: check.passed for check in region_checks.check_regions(broken)}
    broken.close()
    assert [each for each, passed in found.items() if not passed] == [name]


def with_prompt(name: str, change: Callable[[Tensor], Tensor]) -> Change:
    """A platform whose keys of a prompt come with another value of that name."""

    def changed(platform: Platform) -> Platform:
        def engines(bundle: Any) -> Any:
            made: Any = platform.open_engines(bundle)
            kv = made["text_kv"]
            run = kv.run
            dtype = {s.name: s.dtype for s in bundle.manifest.engines["text_kv"].outputs}[name]

            def patched(bindings: Any) -> None:
                run(bindings)
                value = Torch(CPU).tensor(*bindings[name], dtype)
                value.copy_(change(value))

            kv.run = patched
            return made

        return replace(platform, open_engines=engines)

    return changed


def of_a_longer_prompt(bias: Tensor) -> Tensor:
    tokens = int((bias == 0).sum())
    text = torch.zeros(1, len(bias), 1)
    text[:, : tokens + 70] = 1
    return few_keys(text)[0]


@pytest.mark.parametrize(
    ("name", "change"),
    [(KEY_BIAS, of_a_longer_prompt), (KEY_TILES, lambda tiles: tiles - 1)],
)
def test_keys_that_are_not_the_prompts_fail(
    lifted_bundle: Path, made: dict[str, Check], name: str, change: Callable[[Tensor], Tensor]
) -> None:
    assert made["emulated_prompt"].passed
    stale = opened(lifted_bundle, change=with_prompt(name, change))
    found, expected = stale.of_prompt[name]
    check = region_checks.check_prompt(stale)
    stale.close()
    assert not np.array_equal(found.numpy(), expected.numpy())
    assert not check.passed
    assert check.value is not None
