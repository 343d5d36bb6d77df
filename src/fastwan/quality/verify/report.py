"""What `verify` says: checks with a value and a limit, and whether all of them passed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fastwan.errors import EnvironmentLacks, FastWanError

if TYPE_CHECKING:
    from rich.console import RenderableType

Kind = Literal["measured", "emulated", "predicted"]


@dataclass(frozen=True)
class Check:
    """One figure held against its limit.

    Attributes:
        metric: what `value` counts or measures.
        value: None where the check could not be run; then it has failed.
        limit: largest good value.
        kind: ``measured`` on the files or on the CPU; ``emulated`` where a CPU stands in for the
            FP4 arithmetic of the GPU.
        note: at which shape, against what, or why it could not be run.
    """

    name: str
    metric: str
    value: float | None
    limit: float
    kind: Kind = "measured"
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether there is a value and it is within a finite limit."""
        return (
            self.value is not None
            and math.isfinite(self.value)
            and math.isfinite(self.limit)
            and self.value <= self.limit
        )

    def to_json(self) -> dict[str, object]:
        """The check as ``verify --json`` prints it; a figure that is not finite becomes null."""

        def figure(value: float | None) -> float | None:
            return value if value is not None and math.isfinite(value) else None

        return {
            "name": self.name,
            "metric": self.metric,
            "value": figure(self.value),
            "limit": figure(self.limit),
            "kind": self.kind,
            "passed": self.passed,
            "note": self.note,
        }


@dataclass(frozen=True)
class Report:
    """Outcome of all checks of a bundle."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether there are checks and every one of them passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, object]:
        """What ``verify --json`` prints."""
        return {"passed": self.passed, "checks": [check.to_json() for check in self.checks]}


@dataclass(frozen=True)
class Planned:
    """Checks that one function makes, known by name before it runs."""

    names: tuple[str, ...]
    run: Callable[[], Sequence[Check]]


def run_planned(planned: Planned) -> tuple[Check, ...]:
    """Run a function; what it does not deliver, because it failed or left it out, is a failure.

    A graph that was tampered with makes parsers and runtimes raise anything, so every exception
    but a missing package fails the checks and its text becomes their note.

    Raises:
        EnvironmentLacks: a package is missing, so that nothing can be said of the bundle.
    """
    try:
        made = {check.name: check for check in planned.run()}
        note = "no result"
    except EnvironmentLacks:
        raise
    except FastWanError as error:
        made, note = {}, str(error)
    except Exception as error:
        text = " ".join(str(error).split())
        made, note = {}, f"{type(error).__name__}: {text}"[:400]
    return tuple(made.get(name) or not_run(name, note) for name in planned.names)


def not_run(name: str, note: str) -> Check:
    """A check that failed because it could not be run."""
    return Check(name, "not run", None, 0.0, note=note)


def render(report: Report) -> RenderableType:
    """The checks as a table for a terminal, with the verdict under it."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for title in ("check", "value", "limit", "", "what", "note"):
        table.add_column(title, justify="right" if title in ("value", "limit") else "left")
    for check in report.checks:
        value = "-" if check.value is None else f"{check.value:.4g}"
        style = "" if check.passed else "bold red"
        outcome = "passed" if check.passed else "FAILED"
        texts = (check.name, value, f"{check.limit:.4g}", outcome, check.metric, check.note)
        # Notes hold names from the bundle, which are no markup.
        table.add_row(*(Text(text) for text in texts), style=style)
    failed = [check.name for check in report.checks if not check.passed]
    verdict = f"failed: {', '.join(failed)}" if failed else f"{len(report.checks)} checks passed"
    return Group(table, Text(verdict if report.checks else "no checks"))
