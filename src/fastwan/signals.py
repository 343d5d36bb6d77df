"""SIGTERM and SIGHUP end a command as Ctrl-C does: everything is cleaned up on the way out."""

from __future__ import annotations

import signal
from types import FrameType


class Terminated(KeyboardInterrupt):
    """A signal asked the command to end.

    Attributes:
        code: exit code by the shells' convention, 128 + the signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


def end_cleanly_on_signals() -> None:
    """Raise `Terminated` in the main thread on SIGTERM and SIGHUP.

    A signal that is ignored, as under ``nohup``, stays ignored. A second signal does not disturb
    the cleaning up.
    """
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _raise)


def _raise(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise Terminated(number)
