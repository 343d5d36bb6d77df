"""How every command runs: errors as one line and an exit code, and progress on stderr."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import ParamSpec

from fastwan.console import require_stdout
from fastwan.failures import explain, fail
from fastwan.progress import Console, Progress, Quiet

P = ParamSpec("P")


class State:
    """Options of the whole command line, set before a command runs."""

    debug = False
    quiet = False
    verbose = False
    display: Console | None = None


def report_errors(command: Callable[P, int | None]) -> Callable[P, None]:
    """Turn expected failures into one line and their exit code; a command may return a code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            try:
                require_stdout()
                code = command(*args, **kwargs) or 0
            finally:
                if State.display is not None:
                    State.display.stop()
        except (Exception, KeyboardInterrupt) as error:
            line, code = explain(error)
            if State.debug and line and isinstance(error, Exception):
                traceback.print_exc()
            fail(line, code)
        else:
            # Library threads and their destructors have nothing left to do for a finished command.
            sys.exit(code)

    return run


def shown_progress() -> Progress:
    """Progress on stderr, or none with -q or FASTWAN_QUIET; `report_errors` ends it."""
    if State.quiet or os.environ.get("FASTWAN_QUIET"):
        return Quiet()
    State.display = Console(verbose=State.verbose)
    return State.display
