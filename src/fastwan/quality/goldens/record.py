"""The record of a folder of goldens, and what a command says of one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fastwan.quality.findings import Finding, FindingsReport
from fastwan.schema import BundleFacts, Count, Record

RECORD = "goldens.json"


class Video(Record):
    """A video of an accuracy set."""

    seed: Annotated[int, Field(ge=0, lt=1 << 63)]
    prompt: str


class Golden(Record):
    """What was kept of a video."""

    video: Video
    file: Annotated[str, Field(pattern=r"^[0-9]{4}\.npz$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Count


class GoldensRecord(Record):
    """Contents of ``goldens.json``."""

    kind: Literal["goldens-record"] = "goldens-record"
    schema_version: Literal[1] = 1
    made_of: dict[str, str]
    """What decides the numbers; goldens of anything else are refused."""
    graphs: dict[str, str]
    """SHA-256 of the graphs that were played; others may compute the same."""
    runs_on: str
    """Processor and library: what the last bits depend on."""
    goldens: Annotated[tuple[Golden, ...], Field(min_length=1)]


class GoldensReport(FindingsReport):
    """What became of goldens: made, or compared with."""

    kind: Literal["goldens"] = "goldens"
    schema_version: Literal[1] = 1
    action: Literal["make", "check"]
    bundle: BundleFacts
    folder: str
    findings: tuple[Finding, ...]
