"""What the stages of one run share, each part made when a stage first needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

from fastwan.bundle import Bundle
from fastwan.plugins.regions.attention import AttentionRegion
from fastwan.quality.selftest.engine_references import EngineReferences
from fastwan.quality.selftest.machine import Library, Machine
from fastwan.quality.selftest.report import Figure
from fastwan.quality.verify.subject import Subject
from fastwan.runtime.device.session import Platform, Session
from fastwan.runtime.model.samplers import schedule_of
from fastwan.runtime.model.schedule import Schedule
from fastwan.runtime.recording.machine import Device, DeviceEngine
from fastwan.runtime.recording.operations import LaunchRegion
from fastwan.runtime.recording.record import Recording, record


class Skip(Exception):
    """A stage has nothing to prove here; the text says why."""


@dataclass(frozen=True)
class Outcome:
    """A stage that passed."""

    note: str = ""
    figures: tuple[Figure, ...] = ()


class StageFailure(Exception):
    """A stage compared something and it differs. The text is the cause, in one line.

    Args:
        figures: what was measured all the same.
    """

    def __init__(self, cause: str, figures: tuple[Figure, ...] = ()) -> None:
        super().__init__(cause)
        self.figures = figures


class Run(Protocol):
    """A stage."""

    def __call__(self, context: Context, /) -> Outcome: ...


class Context:
    """One bundle on one machine.

    Args:
        bundle: an opened bundle.
    """

    def __init__(self, bundle: Bundle, machine: Machine) -> None:
        self.bundle = bundle
        self.machine = machine
        self._session: Session | None = None

    @cached_property
    def device(self) -> Device:
        return self.machine.device()

    @cached_property
    def library(self) -> Library:
        return self.machine.library(self.bundle)

    @cached_property
    def platform(self) -> Platform:
        """What the session runs on; its engines are opened once for all stages."""
        made = self.machine.platform(self.bundle)
        self._open = made.open_engines
        return replace(made, open_engines=lambda _: self.engines)

    @cached_property
    def engines(self) -> Mapping[str, DeviceEngine]:
        _ = self.platform
        return self._open(self.bundle)

    @cached_property
    def schedule(self) -> Schedule:
        return schedule_of(self.bundle.manifest.sampler_spec())

    @cached_property
    def recording(self) -> Recording:
        """A video of the bundle, on no device."""
        return record(self.bundle.manifest, self.schedule)

    @cached_property
    def attention(self) -> AttentionRegion[Any, Any] | None:
        """The attention as the bundle launches it; None where the engines compute it."""
        for stage in self.recording.stages:
            for operation in stage.operations:
                if isinstance(operation, LaunchRegion) and isinstance(
                    operation.region, AttentionRegion
                ):
                    return operation.region
        return None

    @cached_property
    def subject(self) -> Subject:
        return Subject(self.bundle)

    @cached_property
    def references(self) -> EngineReferences:
        return EngineReferences(self.subject)

    @property
    def session(self) -> Session:
        """The bundle's own sampler on the platform."""
        if self._session is None:
            self._session = Session(self.platform, self.bundle, self.schedule)
        return self._session

    def close(self) -> None:
        """Give graphs and memory back."""
        if self._session is not None:
            self._session.close()
            self._session = None
