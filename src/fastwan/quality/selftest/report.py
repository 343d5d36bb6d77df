"""What ``selftest`` says, as models: nothing in them names a person, a folder or a machine."""

from __future__ import annotations

from typing import Literal

from pydantic import computed_field

from fastwan.config import VideoShape
from fastwan.schema import BundleFacts, Count, Label, Record, Report

Status = Literal["passed", "failed", "skipped", "not reached"]
Kind = Literal["cuda", "emulated", "host"]
"""What a run is on: a bundle's own GPU, a Hopper GPU in its place, or no GPU."""


class Figure(Record):
    """One number of a stage."""

    name: str
    value: float
    unit: str = ""
    limit: float | None = None
    """Largest good value; null for a number that nothing is held to."""
    label: Label = "measured"


class StageResult(Record):
    """What came of one stage."""

    name: str
    title: str
    status: Status
    note: str = ""
    """What was compared, or why the stage was skipped."""
    cause: str = ""
    """Why it failed."""
    fix: str = ""
    still_works: str = ""
    """What can be used all the same when this stage has failed."""
    exit_code: Count = 0
    """3 where the environment lacks something, 4 where a result is wrong; 0 unless it failed."""
    figures: tuple[Figure, ...] = ()


class Software(Record):
    """Versions that the result depends on."""

    python: str
    system: str
    """Kind of system and processor."""
    packages: dict[str, str]


class Gpu(Record):
    """The GPU that ran."""

    name: str
    compute_capability: int
    """10 major + minor."""
    driver_cuda: str
    """Version of the driver's CUDA."""
    driver: str | None
    """Version of the driver itself; null where NVML does not tell."""
    total_bytes: Count


class TestedBundle(Record):
    """Which bundle it was, without where it lies."""

    __test__ = False  # no class of tests

    model: str
    recipe: str
    shape: VideoShape
    target: str
    backend: str
    attention: str
    fusion: str
    weights: str
    sampler: str
    versions: dict[str, str]
    manifest_sha256: str

    @classmethod
    def of(cls, facts: BundleFacts, manifest_sha256: str) -> TestedBundle:
        """From what every report tells of a bundle."""
        fields = facts.model_dump(exclude={"path"})
        return cls(**fields, manifest_sha256=manifest_sha256)


class SelftestReport(Report):
    """Stages in order; those behind the first that failed were not reached."""

    kind: Literal["selftest"] = "selftest"
    schema_version: Literal[2] = 2
    device: Kind
    bundle: TestedBundle
    gpu: Gpu | None
    """Null without one, and where the driver's stage failed."""
    software: Software
    stages: tuple[StageResult, ...]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def failed(self) -> str | None:
        """Name of the stage that failed."""
        return next((stage.name for stage in self.stages if stage.status == "failed"), None)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def exit_code(self) -> int:
        """Of the command: 0, or that of the stage that failed."""
        return max((stage.exit_code for stage in self.stages), default=0)
