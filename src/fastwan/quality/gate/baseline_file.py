"""The file of a baseline: kept in a repository, one value a line, keys in order."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, field_validator

from fastwan.errors import BadInput, shown
from fastwan.outputs import OutputFile
from fastwan.quality.gate.limits import Limit
from fastwan.schema import Record
from fastwan.strict_json import first_fault, quoted, read_json, validated

MAX_BYTES = 4 << 20

HELD = ("static", "schedule", "predicted", "times")
"""Stages whose figures are held against the baseline; there are limits for them."""


def _number(value: object) -> object:
    if type(value) not in (int, float):
        raise ValueError(f"{shown(value)} is no number")
    return value


# Asked first: pydantic would say of each type of the union that the value is none of it.
Figure = Annotated[int | Annotated[float, Field(allow_inf_nan=False)], BeforeValidator(_number)]


class Baseline(Record):
    """Figures that a bundle is held against, and what they depend on."""

    kind: Literal["baseline"] = "baseline"
    schema_version: Literal[1] = 1
    cohort: dict[str, str]
    """Of the bundle; all stages depend on it."""
    rates: dict[str, str] = Field(default_factory=dict)
    """Beside that, what the predicted times depend on."""
    gpu: dict[str, str] = Field(default_factory=dict)
    """And what measured times depend on."""
    clocks: dict[str, int] = Field(default_factory=dict)
    """Median MHz of the GPU while it was timed; held within a limit and not to the digit."""
    limits: dict[str, Limit] = Field(default_factory=dict)
    """That are not the tool's own, by stage or by stage and check."""
    stages: dict[str, dict[str, Figure]] = Field(default_factory=dict)
    """Figures by stage and check; `fastwan.quality.gate.figures` says what they are."""
    checks: tuple[str, ...] = ()
    """Of ``verify``: none of them may be gone."""
    red: tuple[str, ...] = ()
    """Checks that had failed when the file was written, each with its stage."""

    @field_validator("stages", "limits")
    @classmethod
    def _of_a_stage(cls, named: dict[str, Any]) -> dict[str, Any]:
        """A misspelt stage would be held by nobody."""
        for name in named:
            if name.split(".")[0] not in HELD:
                raise ValueError(f"{quoted(name)} is of none of {', '.join(HELD)}")
        return named

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file strictly.

        Raises:
            BadInput: no baseline of this version is there, or a field of it is gone.
        """
        if not os.path.exists(path):
            fix = "the same command with --update-baseline makes one"
            raise BadInput("there is no baseline", where=str(path), fix=fix)
        fix = "take the committed file back, or remove it and make one with --update-baseline"
        try:
            fields = read_json(path, max_bytes=MAX_BYTES)
            if gone := sorted(cls.model_fields.keys() - fields.keys()):
                # `write` leaves none out, and without its list of checks it would hold none.
                raise BadInput(f"{gone[0]!r} is gone")
            return validated(cls, fields)
        except (BadInput, ValidationError) as error:
            what = error.what if isinstance(error, BadInput) else first_fault(error)
            raise BadInput(f"no baseline of gate: {what}", where=str(path), fix=fix) from None

    def write(self, file: OutputFile) -> None:
        """Write the file, whole or not at all."""
        text = json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True, allow_nan=False)
        with file.make() as path:
            path.write_text(text + "\n", encoding="utf-8")

    def figures(self, stage: str) -> Mapping[str, int | float]:
        """Figures of a stage; none where it was not written."""
        return self.stages.get(stage, {})


def baseline_output(path: Path) -> OutputFile:
    """A baseline's file to write: a new one, or in place of an earlier one.

    Raises:
        BadInput: something else lies there, or the place cannot be written.
    """
    return OutputFile(path, _is_baseline, option="--against", has_force=False)


def _is_baseline(path: Path) -> bool:
    try:
        return read_json(path, max_bytes=MAX_BYTES).get("kind") == "baseline"
    except BadInput:
        return False
