"""Of a region's kernels the fastest that agrees is played, found out once for a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fastwan.bundle import Bundle
from fastwan.content_cache import ContentCache
from fastwan.errors import EnvironmentLacks, FastWanWarning, VerificationFailed
from fastwan.plugins.regions import RegionOp
from fastwan.plugins.regions.gelu_quantize import GeluQuantize
from fastwan.plugins.regions.sage_attention3 import (
    IMPLEMENTATIONS,
    SageAttention3,
    SageAttributes,
    SageLayout,
)
from fastwan.runtime.device.first_load import FirstLoad
from fastwan.runtime.device.kernel_choice import LIMIT, Candidate, choose, fastest
from fastwan.runtime.device.kernels import PluginKernels
from fastwan.runtime.device.null import NullDevice
from fastwan.runtime.device.platforms import choose_kernels
from fastwan.runtime.recording.machine import DeviceError
from testkit.fake_regions import HEADS, region
from testkit.manifests import manifest_of

REGION = SageAttention3(1, 256, SageAttributes(2, 200))
LONGER = SageAttention3(1, 384, SageAttributes(2, 300))
FIRST, SECOND = IMPLEMENTATIONS


def candidate(kernel: str, apart: float | None, time: float | None = 1.0) -> Candidate:
    return Candidate(kernel=kernel, relative_l2=apart, milliseconds=time, fault="")


class Gpu:
    """A trial with given results, which counts its runs."""

    def __init__(self, *candidates: Candidate, error: Exception | None = None) -> None:
        self.candidates, self.error, self.runs = candidates, error, 0

    def __call__(self, region: RegionOp, kernels: Mapping[str, RegionOp]) -> tuple[Candidate, ...]:
        self.runs += 1
        assert list(kernels) == list(IMPLEMENTATIONS)
        if self.error is not None:
            raise self.error
        return self.candidates


def slow_and_fast() -> Gpu:
    return Gpu(candidate(FIRST, 1e-4, 2.0), candidate(SECOND, 1e-4, 1.5))


def cache(tmp_path: Path) -> FirstLoad:
    return FirstLoad(ContentCache("runtime", tmp_path), {"gpu": "a"})


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        ((1e-4, 2.0), (1e-4, 1.5), SECOND),
        ((1e-4, 1.0), (1e-4, 1.5), FIRST),
        ((1e-4, 2.0), (1.1 * LIMIT, 1.5), FIRST),
        ((1.1 * LIMIT, 1.0), (1e-4, 1.5), SECOND),
        ((1e-4, 2.0), (None, None), FIRST),
        ((1e-4, None), (1e-4, None), FIRST),
    ],
)
def test_the_fastest_that_agrees_is_kept(
    first: tuple[float | None, float | None],
    second: tuple[float | None, float | None],
    kept: str,
) -> None:
    candidates = (candidate(FIRST, *first), candidate(SECOND, *second))
    assert fastest("region", candidates).kernel == kept


def test_without_one_that_agrees_the_error_names_both() -> None:
    wrong = candidate(FIRST, 0.7)
    broken = Candidate(kernel=SECOND, relative_l2=None, milliseconds=None, fault="launch failed")
    with pytest.raises(
        VerificationFailed, match=r"sage3 differs by 0\.7; flashinfer fails: launch failed"
    ):
        fastest("region", (wrong, broken))
    assert fastest("region", (candidate(FIRST, LIMIT), broken)).kernel == FIRST


def test_a_gpu_is_tried_once(tmp_path: Path) -> None:
    gpu = slow_and_fast()
    for _ in range(2):
        chosen = choose([REGION, REGION], gpu, cache(tmp_path))
        assert chosen[REGION].kernel == SECOND
        assert gpu.runs == 1
    other = FirstLoad(ContentCache("runtime", tmp_path), {"gpu": "b"})
    assert choose([REGION], gpu, other)[REGION].kernel == SECOND
    assert gpu.runs == 2


def test_a_choice_is_that_of_one_shape(tmp_path: Path) -> None:
    gpu = slow_and_fast()
    assert set(choose([REGION, LONGER], gpu, cache(tmp_path))) == {REGION, LONGER}
    assert gpu.runs == 2


def test_a_region_with_one_kernel_is_not_tried(tmp_path: Path) -> None:
    gpu = slow_and_fast()
    assert choose([GeluQuantize(128, 128)], gpu, cache(tmp_path)) == {}
    assert gpu.runs == 0


@pytest.mark.parametrize("damage", [b"{}", b"\xff", b""])
def test_a_damaged_choice_is_made_again(tmp_path: Path, damage: bytes) -> None:
    gpu = slow_and_fast()
    choose([REGION], gpu, cache(tmp_path))
    (file,) = (tmp_path / "runtime").rglob("outcome.json")
    file.write_bytes(damage)
    assert choose([REGION], gpu, cache(tmp_path))[REGION].kernel == SECOND
    assert gpu.runs == 2


@pytest.mark.parametrize(
    ("kernel", "apart", "usable"), [(FIRST, 1e-4, True), (FIRST, 1.0, False), ("old", 1e-4, False)]
)
def test_what_this_version_would_not_have_chosen_is_not_taken(
    tmp_path: Path, kernel: str, apart: float, usable: bool
) -> None:
    made = fastest("region", (candidate(kernel, 1e-4),))
    kept = made.model_copy(update={"candidates": (candidate(kernel, apart),)})
    first = cache(tmp_path)
    first.keep(f"kernel of {REGION!r}", kept)
    gpu = slow_and_fast()
    assert choose([REGION], gpu, cache(tmp_path))[REGION].kernel == (FIRST if usable else SECOND)
    assert gpu.runs == int(not usable)


def test_a_trial_that_fails_warns_and_is_repeated(tmp_path: Path) -> None:
    full = Gpu(error=DeviceError("out of memory", "memory"))
    with pytest.warns(FastWanWarning, match="sage3 is played, untried: out of memory"):
        assert choose([REGION], full, cache(tmp_path)) == {}
    assert choose([REGION], slow_and_fast(), cache(tmp_path))[REGION].kernel == SECOND


def test_a_lost_device_ends_the_load(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="gone"):
        choose([REGION], Gpu(error=DeviceError("gone", "sticky")), cache(tmp_path))


class Library:
    """A plugin library that launches nothing, or says why not."""

    emulated = False

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        self.launched: list[RegionOp] = []

    def layout(self, region: SageAttention3) -> SageLayout:
        padded = 128
        codes, scales = padded * HEADS * 64, padded * HEADS * 8
        starts = [0, codes, codes + scales, 2 * codes + scales, 2 * (codes + scales)]
        return SageLayout(padded, *starts, 3 * codes + 2 * scales)

    def enqueue(self, region: RegionOp, *_: object) -> None:
        if self.fault:
            raise EnvironmentLacks(self.fault)
        self.launched.append(region)


def test_regions_of_a_bundle_are_tried_through_the_library() -> None:
    regions = {f"region_{i:02d}": region(i) for i in range(2)}
    bundle = Bundle(Path("bundle"), manifest_of(regions=regions))
    library: Any = Library()
    chosen = choose_kernels(bundle, NullDevice(), library, FirstLoad(None, {}))
    ((op, choice),) = chosen.items()
    # A device without a clock, whose memory is all zeros, gives no reason to leave the first.
    assert (choice.kernel, [each.relative_l2 for each in choice.candidates]) == (FIRST, [0.0, 0.0])
    assert {each.implementation for each in library.launched} == set(IMPLEMENTATIONS)
    library.launched.clear()
    PluginKernels(library, {op: op.alternatives[SECOND]}).region(op, [], [], 0, 0, 0)
    PluginKernels(library).region(op, [], [], 0, 0, 0)
    assert [each.implementation for each in library.launched] == [SECOND, FIRST]


def test_a_bundle_without_a_kernel_that_runs_does_not_load() -> None:
    bundle = Bundle(Path("bundle"), manifest_of(regions={"region_00": region(0)}))
    library: Any = Library("no kernel image")
    with pytest.raises(VerificationFailed, match=r"sage3 fails: no kernel image; flashinfer fails"):
        choose_kernels(bundle, NullDevice(), library, FirstLoad(None, {}))
