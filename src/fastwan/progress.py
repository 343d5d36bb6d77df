"""Progress on stderr: a bar on a terminal, one line a stage in a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from fastwan.console import WIDE, Look, say

if TYPE_CHECKING:
    from rich.progress import Progress as Display


class Progress(Protocol):
    """What a long stage reports to. All methods are cheap and may be called from any thread."""

    def start(self, stage: str, total: int = 0, unit: str = "") -> None:
        """Begin `stage` of `total` `unit`s (0: unknown)."""

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count `amount` units of the current stage as done."""

    def finish(self, note: str = "") -> None:
        """End the current stage."""


class Quiet:
    """Reports nothing; the default of every function that takes a `Progress`."""

    def start(self, stage: str, total: int = 0, unit: str = "") -> None:
        pass

    def advance(self, amount: int = 1, note: str = "") -> None:
        pass

    def finish(self, note: str = "") -> None:
        pass


_ROOM_FOR_COUNT, _ROOM_FOR_BAR = 48, 76
"""Columns of a terminal from which on they are shown."""


def _amount(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value / 1e6:,.0f} MB"
    return f"{value:,.0f} {unit}".rstrip()


class Console:
    """One line a finished stage on `stderr`; on a terminal a bar while the stage runs.

    Args:
        live: show the bar; None asks the stream whether it is a terminal, and is content with
            lines where a CI system says that it reads them (``CI``).
        verbose: a line for each unit that has a note, too.
    """

    def __init__(self, live: bool | None = None, verbose: bool = False) -> None:
        here = sys.stderr.isatty() and not os.environ.get("CI")
        self._live = here if live is None else live
        self._verbose = verbose
        self._display: Display | None = None
        self._stage = ""
        self._unit = ""
        self._done = 0
        self._begin = 0.0

    def start(self, stage: str, total: int = 0, unit: str = "") -> None:
        self.stop()
        self._stage, self._unit, self._done = stage, unit, 0
        self._begin = time.monotonic()
        if self._live:
            self._display = _display(total, unit)
            self._display.add_task(stage, total=total or None, note="")
            self._display.start()

    def advance(self, amount: int = 1, note: str = "") -> None:
        self._done += amount
        display = self._display  # another thread may stop it
        if display is not None:
            display.update(display.task_ids[0], advance=amount, note=note)
        if self._verbose and note:
            say(f"{self._stage}: {note}")

    def finish(self, note: str = "") -> None:
        self.stop()
        seconds = time.monotonic() - self._begin
        done = f" {_amount(self._done, self._unit)}" if self._done else ""
        tail = f" {note}" if note else ""
        say(f"{self._stage}:{done} in {seconds:.1f} s{tail}")

    def stop(self) -> None:
        """Take the bar away, where there is one; a stage that failed has nothing more to say."""
        display, self._display = self._display, None
        if display is not None:
            display.stop()


def _display(total: int, unit: str) -> Display:
    from rich.console import Console as Terminal
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    plain = TextColumn("{task.description}", markup=False)
    note = TextColumn("{task.fields[note]}", markup=False)
    terminal = Terminal(
        file=sys.stderr, force_terminal=True, no_color=True if Look.color == "never" else None
    )
    # It turns while a stage stands still. A line that is longer than a narrow pane would be drawn
    # again and again below itself, so what tells least is left out there.
    columns: list[ProgressColumn] = [SpinnerColumn("line"), plain, TimeElapsedColumn()]
    if total and terminal.width >= _ROOM_FOR_COUNT:
        columns.append(DownloadColumn() if unit == "bytes" else MofNCompleteColumn())
    if total and terminal.width >= _ROOM_FOR_BAR:
        columns[2:2] = [BarColumn(20)]
        columns.append(TimeRemainingColumn())
    if terminal.width >= WIDE:
        columns.append(note)
    # stdout is the command's result, which may go elsewhere.
    return Progress(*columns, console=terminal, transient=True, redirect_stdout=False)


@contextmanager
def stage(progress: Progress, name: str, total: int = 0, unit: str = "") -> Iterator[Progress]:
    """Run a `with` body as one stage; the stage is not reported as finished when it raises."""
    progress.start(name, total, unit)
    yield progress
    progress.finish()
