"""The first two stages: driver and packages, and the plugin library."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np

from fastwan.config import TARGETS
from fastwan.cuda_driver import OLDEST_CUDA
from fastwan.errors import BadInput, EnvironmentLacks
from fastwan.quality.selftest.context import Context, Outcome, Skip, StageFailure
from fastwan.quality.selftest.machine import Library
from fastwan.quality.selftest.memory import Scratch
from fastwan.quality.selftest.report import Figure
from fastwan.runtime.device.memory import check_fit
from fastwan.runtime.model.loop import combine
from fastwan.runtime.recording.memory_plan import plan
from fastwan.tables import lookup

_EM_CUDA = 190
_ELEMENTS = 1000


class WrongLibrary(EnvironmentLacks):
    """A plugin library of another kind or version, or a broken one."""


def driver(context: Context) -> Outcome:
    """A driver that is new enough, the right GPU, the right packages, enough memory."""
    machine, bundle = context.machine, context.bundle
    found = machine.driver()
    if found is None or not found.devices:
        raise EnvironmentLacks(
            "no driver, or no CUDA device visible to this process",
            fix="install NVIDIA's driver and check CUDA_VISIBLE_DEVICES",
        )
    if tuple(map(int, found.cuda.split("."))) < OLDEST_CUDA:
        raise EnvironmentLacks(
            f"the driver knows CUDA {found.cuda}, this needs {OLDEST_CUDA[0]}.{OLDEST_CUDA[1]}",
            fix="install NVIDIA's driver 580 or newer",
        )
    wanted = machine.wanted_capability(bundle)
    if found.compute_capability != wanted:
        here = "none" if found.compute_capability is None else _dotted(found.compute_capability)
        raise EnvironmentLacks(
            f"the GPU has compute capability {here}, this needs {_dotted(wanted)}",
            fix="build the bundle for this GPU; on a Hopper GPU use --device emulated",
        )
    versions = machine.packages(bundle)
    needed = plan(context.recording)
    check_fit(context.device, needed)
    info = context.device.info
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    return Outcome(
        f"{info.name}, CUDA {found.cuda}; {said}",
        (
            Figure(
                name="device memory of the bundle",
                value=float(needed.total),
                unit="bytes",
                limit=float(context.device.free_bytes()),
                label="predicted",
            ),
        ),
    )


def driver_on_host(context: Context) -> Outcome:
    """What is there; nothing of it is needed for the stages that follow."""
    found = context.machine.driver()
    gpu = "no driver" if found is None else f"driver of CUDA {found.cuda}, {found.devices} devices"
    try:
        versions = context.machine.packages(context.bundle)
        said = ", ".join(f"{name} {version}" for name, version in versions.items())
    except EnvironmentLacks as error:
        said = error.what
    return Outcome(f"{gpu}; {said}")


def library(context: Context) -> Outcome:
    """The plugin library loads, has code for this GPU, and its small kernels compute."""
    found = _opened(context)
    if context.attention is not None:
        try:
            found.check_device(kinds=[type(context.attention)])
        except EnvironmentLacks as error:
            raise EnvironmentLacks(error.what, fix=_how_to_build(context)) from error
    _small_kernels(context)
    words = " ".join(f"{key}={value}" for key, value in found.build_info.items())
    return Outcome(f"{words}; casts and sums as on the CPU")


def library_on_host(context: Context) -> Outcome:
    """The plugin library is whole, and holds machine code for the bundle's target."""
    try:
        found = _opened(context)
    except WrongLibrary:
        raise
    except EnvironmentLacks as error:
        raise Skip(f"{error.what}; {error.fix}") from error
    target = lookup(TARGETS, context.bundle.manifest.target)
    capability = _dotted(target.compute_capability)
    held = architectures(found.path)
    if not (
        target.compute_capability in held if held else capability in found.compute_capabilities
    ):
        listed = ", ".join(map(_dotted, sorted(held))) or "no GPU that can be told"
        raise EnvironmentLacks(
            f"the plugin library holds code for {listed}, not for {capability} ({target.gpu})",
            fix=_how_to_build(context),
        )
    listed = ", ".join(map(_dotted, sorted(held))) or "compressed"
    return Outcome(f"machine code for {listed}; it was not run")


def _opened(context: Context) -> Library:
    """The plugin library; one that is no good is for the user to replace.

    Raises:
        EnvironmentLacks: missing.
        WrongLibrary: there, and not to be used.
    """
    try:
        return context.library
    except BadInput as error:
        raise WrongLibrary(error.what, fix=error.fix) from error


def _how_to_build(context: Context) -> str:
    emulated = " --emulated" if context.machine.kind == "emulated" else ""
    return f"fastwan-export build-plugin{emulated}"


def _small_kernels(context: Context) -> None:
    """A cast and a weighted sum against numpy, bit for bit.

    Raises:
        StageFailure: they differ.
    """
    kernels = context.platform.kernels
    generator = np.random.default_rng(0)
    a, b = (generator.standard_normal(_ELEMENTS).astype(np.float32) for _ in range(2))
    with Scratch(context.device) as scratch:
        terms = [(scratch.put(each), "float32") for each in (a, b)]
        total, narrow = scratch.space(4 * _ELEMENTS), scratch.space(2 * _ELEMENTS)
        kernels.combine(terms, [total], [[(0, 0.3), (1, -1.7)]], _ELEMENTS, scratch.stream)
        rows = (1, _ELEMENTS, _ELEMENTS)
        kernels.cast(terms[0], (narrow, "bfloat16"), rows, scratch.stream)
        found = [
            scratch.get(total, (_ELEMENTS,), "float32"),
            scratch.get(narrow, (_ELEMENTS,), "bfloat16"),
        ]
    expected = [combine([(0.3, a), (-1.7, b)]), a.astype("bfloat16")]
    for name, one, other in zip(("sum", "cast"), found, expected, strict=True):
        if wrong := int((one != other).sum()):
            raise StageFailure(f"{wrong} of {_ELEMENTS} elements of a {name} differ from the CPU's")


def architectures(library_file: Path) -> frozenset[int]:
    """Compute capabilities that a library holds machine code for, 10 major + minor.

    Read from the CUDA ELF images inside it; none where they are compressed.
    """
    content = library_file.read_bytes()
    found = set()
    for match in re.finditer(rb"\x7fELF\x02\x01", content):
        head = content[match.start() : match.start() + 64]
        if len(head) < 64 or struct.unpack_from("<H", head, 18)[0] != _EM_CUDA:
            continue
        (flags,) = struct.unpack_from("<I", head, 48)
        found.add((flags >> 8) & 0xFFFF if flags & 0xFF00 else flags & 0xFF)
    return frozenset(found)


def _dotted(capability: int) -> str:
    return f"{capability // 10}.{capability % 10}"
