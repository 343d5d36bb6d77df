"""The file of a baseline: kept in a repository, one value a line, keys in order."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError

from fastwan.errors import BadInput
from fastwan.outputs import OutputFile
from fastwan.quality.gate.limits import Limit
from fastwan.schema import Record
from fastwan.strict_json import read_json, validated

MAX_BYTES = 4 << 20

Figure = int | Annotated[float, Field(allow_inf_nan=False)]


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

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file strictly.

        Raises:
            BadInput: no baseline of this version is there.
        """
        if not os.path.exists(path):
            fix = "the same command with --update-baseline makes one"
            raise BadInput("there is no baseline", where=str(path), fix=fix)
        fix = "take the committed file back, or give one that gate --update-baseline made"
        try:
            return validated(cls, read_json(path, max_bytes=MAX_BYTES))
        except BadInput as error:
            raise BadInput(f"no baseline of gate: {error.what}", where=str(path), fix=fix) from None
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            what = f"{first['msg']} in {field!r}" if field else first["msg"]
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
