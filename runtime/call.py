"""The state of one call, and the calls that a pipeline serves at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fastwan.runtime.model.executor import Array


@dataclass(eq=False)
class Call:
    """What one call holds while it is served; no other call sees it.

    Attributes:
        stopped: end after the step that runs now.
        embeds: of the video that is made now, [1, text_length, text_dim]: of its prompt and,
            where its sampler is guided, of the negative prompt.
        steps: of its sampler.
        guidance: likewise, the scale of its guidance.
        timestep: of the step that was done last; None between videos.
        thread: that the call was made on.
    """

    stopped: bool = False
    embeds: tuple[Array, ...] = ()
    steps: int = 0
    guidance: float = 1.0
    timestep: int | None = None
    thread: int = field(default_factory=threading.get_ident)


class Calls:
    """Calls of all threads, those that wait for their turn included."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[Call] = []

    @contextmanager
    def begin(self) -> Iterator[Call]:
        """A new call, for as long as the `with` body runs."""
        call = Call()
        with self._lock:
            self._open.append(call)
        try:
            yield call
        finally:
            with self._lock:
                self._open.remove(call)

    def here(self) -> Call | None:
        """The call that this thread is in, the innermost; None outside of one."""
        with self._lock:
            mine = [call for call in self._open if call.thread == threading.get_ident()]
        return mine[-1] if mine else None

    def stop(self, stopped: bool = True) -> None:
        """Stop the call that this thread is in; outside of one, all of them."""
        call = self.here()
        with self._lock:
            for each in [call] if call is not None else self._open:
                each.stopped = stopped
