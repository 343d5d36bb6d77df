"""Progress of a build, and Ctrl-C while the builder's C++ is on the stack."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from fastwan.progress import Progress


class Cancel:
    """Whether the user asked to stop."""

    def __init__(self) -> None:
        self.requested = False


@contextmanager
def deferred_interrupt() -> Iterator[Cancel]:
    """Turn Ctrl-C into a request that the build polls, and raise it when the build has returned.

    Raised inside a callback of the builder, KeyboardInterrupt would cross C++ frames and end the
    process. Outside the main thread signals cannot be caught and nothing is changed.
    """
    cancel = Cancel()
    if threading.current_thread() is not threading.main_thread():
        yield cancel
        return

    def request(_signal: int, _frame: object) -> None:
        cancel.requested = True

    previous = signal.signal(signal.SIGINT, request)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGINT, previous)
    if cancel.requested:
        raise KeyboardInterrupt


def progress_monitor(trt: Any, name: str, progress: Progress, cancel: Cancel) -> Any:
    """A monitor that redraws the current stage and cancels the build on request."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._report(f"{name}: {phase}")

        def phase_finish(self, phase: str) -> None:
            pass

        def step_complete(self, phase: str, step: int) -> bool:
            self._report(f"{name}: {phase}")
            return not cancel.requested

        def _report(self, note: str) -> None:
            # An exception may not cross C++ frames, and a display that fails must not end a build.
            with suppress(Exception):
                progress.advance(0, note)

    return Monitor()
