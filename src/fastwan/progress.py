"""Progress on stderr: a live line on a terminal, nothing in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


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


def _amount(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value / 1e6:,.0f} MB"
    return f"{value:,.0f} {unit}".rstrip()


class Console:
    """One line a stage on `stderr`; on a terminal the line is redrawn with the time left.

    Args:
        live: redraw while a stage runs; None asks the stream whether it is a terminal.
    """

    def __init__(self, live: bool | None = None) -> None:
        self._live = sys.stderr.isatty() if live is None else live
        self._stage = ""
        self._total = 0
        self._unit = ""
        self._done = 0
        self._begin = 0.0
        self._drawn = 0.0

    def start(self, stage: str, total: int = 0, unit: str = "") -> None:
        self._stage, self._total, self._unit, self._done = stage, total, unit, 0
        self._begin = time.monotonic()
        self._drawn = 0.0
        self._draw("")

    def advance(self, amount: int = 1, note: str = "") -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._drawn >= 0.1:
            self._drawn = now
            self._draw(note)

    def finish(self, note: str = "") -> None:
        seconds = time.monotonic() - self._begin
        clear = "\r\x1b[2K" if self._live else ""
        done = f" {_amount(self._done, self._unit)}" if self._done else ""
        tail = f" {note}" if note else ""
        print(f"{clear}{self._stage}:{done} in {seconds:.1f} s{tail}", file=sys.stderr, flush=True)

    def _draw(self, note: str) -> None:
        if not self._live:
            return
        text = f"{self._stage}: {_amount(self._done, self._unit)}"
        if self._total:
            text += f" of {_amount(self._total, self._unit)}"
            if self._done:
                elapsed = time.monotonic() - self._begin
                left = elapsed * (self._total - self._done) / self._done
                text += f", {left:.0f} s left"
        print(f"\r\x1b[2K{text} {note}"[:120], end="", file=sys.stderr, flush=True)


@contextmanager
def stage(progress: Progress, name: str, total: int = 0, unit: str = "") -> Iterator[Progress]:
    """Run a `with` body as one stage; the stage is not reported as finished when it raises."""
    progress.start(name, total, unit)
    yield progress
    progress.finish()
