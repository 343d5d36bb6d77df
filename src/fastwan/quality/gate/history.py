"""Measured times of earlier runs: a line of JSON a run, and the rolling median of a cohort."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from fastwan.errors import BadInput
from fastwan.files import open_regular
from fastwan.schema import Record
from fastwan.staging import atomic_file
from fastwan.strict_json import parse_json, validated

LAST = 10
"""Records of a cohort that count, the last ones."""
LEAST = 3
"""Records without which there is no rolling median."""
MAX_BYTES = 64 << 20

Figure = int | Annotated[float, Field(allow_inf_nan=False)]


class HistoryRecord(Record):
    """What one run of the gate measured."""

    kind: Literal["gate-times"] = "gate-times"
    schema_version: Literal[1] = 1
    time: str
    """When, UTC, ISO 8601."""
    tool: str
    """Version of fastwan-export."""
    cohort: dict[str, str]
    """Of bundle and GPU."""
    clocks: dict[str, int]
    """Median MHz of the measured videos."""
    passed: bool
    """Whether no time was beyond its limit; others are kept and do not count."""
    figures: dict[str, Figure]
    """By check of the stage ``times``."""


def read_history(path: Path) -> list[HistoryRecord]:
    """Records of a file in order; none where there is no file yet.

    Raises:
        BadInput: a line that is no record, or a file that cannot be read.
    """
    if not path.exists():
        return []
    try:
        with open_regular(path) as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        what = f"history cannot be read: {error.strerror or error}"
        raise BadInput(what, where=str(path)) from None
    if len(data) > MAX_BYTES:
        raise BadInput(
            f"history is larger than {MAX_BYTES:,} bytes",
            where=str(path),
            fix="keep its last lines",
        )
    records = []
    for number, line in enumerate(data.splitlines(), 1):
        where = f"{path}, line {number}"
        try:
            records.append(validated(HistoryRecord, parse_json(line, where)))
        except ValidationError as error:
            what = f"no record of gate: {error.errors()[0]['msg']}"
            raise BadInput(what, where=where, fix="remove the line") from None
    return records


def append_record(path: Path, record: HistoryRecord) -> None:
    """Add a record to a file, which is whole at every moment."""
    before = path.read_bytes() if path.exists() else b""
    line = json.dumps(record.model_dump(mode="json"), sort_keys=True, allow_nan=False)
    with atomic_file(path) as temporary:
        temporary.write_bytes(before + line.encode() + b"\n")


def rolling_median(records: Sequence[HistoryRecord], cohort: Mapping[str, str]) -> dict[str, float]:
    """Median of each figure over the last `LAST` good records of a cohort.

    Empty with fewer than `LEAST`; a figure that not all of them have is left out.
    """
    good = [record for record in records if record.passed and record.cohort == cohort][-LAST:]
    if len(good) < LEAST:
        return {}
    names = set.intersection(*(set(record.figures) for record in good))
    return {
        name: statistics.median([record.figures[name] for record in good]) for name in sorted(names)
    }
