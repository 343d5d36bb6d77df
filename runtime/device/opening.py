"""Engines of a bundle, opened for a session, and the recording that is played with them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastwan.bundle import Bundle
from fastwan.runtime.device import self_check
from fastwan.runtime.device.self_check import SelfCheck
from fastwan.runtime.recording.machine import DeviceEngine
from fastwan.runtime.recording.record import Recording, record

if TYPE_CHECKING:
    from fastwan.runtime.device.session import Platform

Engines = Mapping[str, DeviceEngine]


@dataclass(frozen=True)
class Opened:
    """What a session plays.

    Attributes:
        engines: all that the recording runs.
        checked: how the kernels of regions agree; None where nothing was compared.
    """

    engines: Engines
    recording: Recording
    checked: SelfCheck | None = None


def open_for(
    platform: Platform,
    bundle: Bundle,
    recording: Recording,
    fallbacks: Collection[str] | None = None,
) -> Opened:
    """Open the engines and settle which regions fallbacks are played for.

    Args:
        recording: of the bundle.
        fallbacks: kinds of regions; by default those whose kernels disagree with the builder's,
            found out now or by an earlier load.

    Raises:
        EnvironmentLacks, VerificationFailed: see the platform's `open_engines`.
        DeviceError: the device is lost.
    """
    engines = platform.open_engines(bundle)
    recording = _fitted(recording, engines)
    if fallbacks is not None:
        return _with(fallbacks, Opened(engines, recording), platform, bundle)
    first = platform.first_load
    if first is None or not recording.manifest.fallbacks:
        return Opened(engines, recording)
    checked = first.find(self_check.NAME, SelfCheck)
    kinds = {each.node.op for each in recording.manifest.fallbacks.values()}
    if checked is None or not kinds.issuperset(checked.fallbacks):
        everything = {**engines, **platform.open_fallbacks(bundle)}
        checked = self_check.compare(
            platform.device, platform.kernels, bundle, _fitted(recording, everything), everything
        )
        if checked is None:
            return Opened(engines, recording)
        first.keep(self_check.NAME, checked)
    opened = _with(checked.fallbacks, Opened(engines, recording, checked), platform, bundle)
    if checked.fallbacks:
        self_check.warn_of_fallbacks(checked, opened.recording, platform.device.info.name)
    return opened


def _with(fallbacks: Collection[str], opened: Opened, platform: Platform, bundle: Bundle) -> Opened:
    if not fallbacks:
        return opened
    everything = {**opened.engines, **platform.open_fallbacks(bundle)}
    recording = _fitted(opened.recording, everything, fallbacks)
    return Opened(everything, recording, opened.checked)


def _fitted(recording: Recording, engines: Engines, fallbacks: Collection[str] = ()) -> Recording:
    """The recording with the scratch that engines need here, as their builder may not foresee."""
    manifest = recording.manifest
    found = {
        name: engine.model_copy(update={"scratch_bytes": engines[name].scratch_bytes})
        for name, engine in manifest.engines.items()
    }
    beside = {
        name: each.with_scratch(engines[name].scratch_bytes) if name in engines else each
        for name, each in manifest.fallbacks.items()
    }
    changed = manifest.model_copy(update={"engines": found, "fallbacks": beside})
    if changed == manifest and recording.fallbacks == frozenset(fallbacks):
        return recording
    return record(changed, recording.schedule, fallbacks, recording.processors)
