"""What happens to a job, told as it happens: from the worker's thread to any number of readers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from queue import SimpleQueue
from typing import Any, Literal

Kind = Literal["queued", "started", "step", "frames", "chunk", "broken", "done"]


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Attributes:
        kind: ``queued``; ``started``; ``step`` (``step`` of ``steps`` are done); ``frames``
            (``frames`` of ``num_frames`` are decoded); ``chunk`` (the next bytes of the video as it
            is made, in `body`); ``broken`` (no further ``chunk`` comes, though the video may be
            completed); ``done`` (``status``), which is the last one.
        data: what a reader is told, as JSON has it.
    """

    kind: Kind
    data: Mapping[str, Any] = field(default_factory=dict)
    body: bytes = b""


@dataclass(eq=False)
class _Reader:
    """Who waits for the next event.

    Attributes:
        called: it is to be woken, and has not looked since.
    """

    loop: asyncio.AbstractEventLoop
    fresh: asyncio.Event = field(default_factory=asyncio.Event)
    called: bool = False

    def call(self) -> None:
        """Have it woken, from any thread; the channel's lock is held."""
        if not self.called:
            self.called = True
            _waker().put(self)


@cache
def _waker() -> SimpleQueue[_Reader]:
    """Readers that a thread of its own wakes.

    Who wakes an event loop gives it the interpreter, and waits until it gets it back: the thread
    that makes a video would wait so at each of its frames.
    """
    waiting: SimpleQueue[_Reader] = SimpleQueue()

    def wake() -> None:
        while True:
            reader = waiting.get()
            with suppress(RuntimeError):  # its loop is closed
                reader.loop.call_soon_threadsafe(reader.fresh.set)

    threading.Thread(target=wake, name="fastwan-waker", daemon=True).start()
    return waiting


class Channel:
    """The events of one job so far, and readers that wait for the next."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._readers: list[_Reader] = []
        self._watchers = 0
        self._closed = False

    def publish(self, event: Event) -> None:
        """Tell all readers, of any thread; nothing follows ``done``."""
        with self._lock:
            if self._closed:
                return
            self._events.append(event)
            self._closed = event.kind == "done"
            for reader in self._readers:
                reader.call()

    def last(self, kind: Kind) -> Event | None:
        """The latest event of a kind."""
        with self._lock:
            return next((each for each in reversed(self._events) if each.kind == kind), None)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Somebody waits for the video as it is made."""
        with self._lock:
            self._watchers += 1
        try:
            yield
        finally:
            with self._lock:
                self._watchers -= 1

    @property
    def is_watched(self) -> bool:
        with self._lock:
            return self._watchers > 0

    async def follow(self, every: float | None = None) -> AsyncGenerator[Event | None]:
        """All events from the first on, until ``done``.

        Args:
            every: after so many seconds without an event None comes; never without a number.
        """
        reader = _Reader(asyncio.get_running_loop())
        with self._lock:
            self._readers.append(reader)
        seen = 0
        try:
            while True:
                reader.fresh.clear()
                with self._lock:
                    reader.called = False
                    events, closed = self._events[seen:], self._closed
                for event in events:
                    yield event
                seen += len(events)
                if closed:
                    return
                try:
                    await asyncio.wait_for(reader.fresh.wait(), every)
                except TimeoutError:
                    yield None
        finally:
            with self._lock:
                self._readers.remove(reader)


class Channels:
    """The channels of the jobs that are not finished."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, Channel] = {}

    def open(self, job_id: str) -> Channel:
        """The channel of a job, made where there is none."""
        with self._lock:
            return self._open.setdefault(job_id, Channel())

    def get(self, job_id: str) -> Channel | None:
        """The channel of a job; None once it is finished."""
        with self._lock:
            return self._open.get(job_id)

    def finish(self, job_id: str, status: str) -> None:
        """Tell the readers of a job how it ended, and forget it; they keep the channel."""
        with self._lock:
            channel = self._open.pop(job_id, None)
        if channel is not None:
            channel.publish(Event("done", {"status": status}))

    def close(self, status: str) -> None:
        """Let the readers of all jobs go."""
        with self._lock:
            jobs = list(self._open)
        for job_id in jobs:
            self.finish(job_id, status)
