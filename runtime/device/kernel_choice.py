"""Which kernel computes a region, where the plugin library has several: the GPU decides.

When a bundle is first loaded on a GPU, each kernel computes the region in its own size from made-up
inputs. Some tiles of the result are held to the numbers that the region is defined by; of the
kernels that agree the fastest is kept, and stays for the loads after it (`first_load`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping

from fastwan.errors import EnvironmentLacks, FastWanWarning, VerificationFailed
from fastwan.plugins.regions import RegionOp
from fastwan.runtime.device.first_load import FirstLoad
from fastwan.runtime.recording.machine import DeviceError
from fastwan.schema import Duration, Measured, Record

LIMIT = 2e-2
"""Largest relative L2 difference of a kernel that is played. FP4 itself is 0.02 to 0.19 away from
exact attention; a fault of layout is 1 and more."""


class Candidate(Record):
    """One kernel of a region."""

    kernel: str
    relative_l2: Measured[Duration | None]
    """Difference from the region's definition; null where the kernel did not run."""
    milliseconds: Measured[Duration | None]
    """Of the whole region; null where the device has no clock."""
    fault: str = ""
    """Why it did not run."""

    @property
    def agrees(self) -> bool:
        return self.relative_l2 is not None and self.relative_l2 <= LIMIT

    def __str__(self) -> str:
        if self.relative_l2 is None:
            return f"{self.kernel} fails: {self.fault}"
        return f"{self.kernel} differs by {self.relative_l2:.2g}"


class KernelChoice(Record):
    """The kernel that computes a region."""

    region: str
    """With its shape."""
    kernel: str
    candidates: tuple[Candidate, ...]

    def __str__(self) -> str:
        times = ", ".join(
            f"{each.kernel} {each.milliseconds:.3f} ms" if each.agrees else str(each)
            for each in self.candidates
            if each.milliseconds is not None or not each.agrees
        )
        return f"{self.region}: {self.kernel}" + (f" ({times})" if times else "")


Trial = Callable[[RegionOp, Mapping[str, RegionOp]], tuple[Candidate, ...]]
"""Runs a region's kernels, by name, on one GPU."""


def choose(
    regions: Iterable[RegionOp], trial: Trial, first: FirstLoad
) -> dict[RegionOp, KernelChoice]:
    """Kernels of the regions that have several.

    Where they cannot be tried, as there is too little memory, a region has its first kernel, after
    a warning, and the next load tries again.

    Args:
        regions: of a bundle.
        first: where choices are kept.

    Raises:
        VerificationFailed: no kernel of a region agrees with its definition.
        DeviceError: of kind ``sticky``: the device is lost.
    """
    chosen: dict[RegionOp, KernelChoice] = {}
    for region in dict.fromkeys(regions):
        kernels = region.alternatives
        if not kernels:
            continue
        name = f"kernel of {region!r}"
        known = first.find(name, KernelChoice)
        if known is None or not _usable(known, kernels):
            try:
                known = fastest(str(region), trial(region, kernels))
            except (DeviceError, EnvironmentLacks) as error:
                if isinstance(error, DeviceError) and error.kind == "sticky":
                    raise
                warnings.warn(
                    f"{region}: {next(iter(kernels))} is played, untried: {error}",
                    FastWanWarning,
                    stacklevel=2,
                )
                continue
            first.keep(name, known)
        chosen[region] = known
    return chosen


def fastest(region: str, candidates: tuple[Candidate, ...]) -> KernelChoice:
    """The fastest that agrees; without a clock the first.

    Raises:
        VerificationFailed: none agrees.
    """
    agreeing = [each for each in candidates if each.agrees]
    if not agreeing:
        raise VerificationFailed(
            f"no kernel of the {region} agrees with its definition: "
            + "; ".join(map(str, candidates)),
            where="plugin library",
            fix="fastwan-export selftest tells what this GPU does; please report it",
        )
    kept = min(agreeing, key=lambda each: each.milliseconds or 0.0)
    return KernelChoice(region=region, kernel=kept.kernel, candidates=candidates)


def _usable(choice: KernelChoice, kernels: Mapping[str, RegionOp]) -> bool:
    """Whether a choice that was kept is one that this version would have made."""
    kept = [each for each in choice.candidates if each.kernel == choice.kernel]
    return choice.kernel in kernels and any(each.agrees for each in kept)
