"""Readers that stay: a bounded number of them, and what each is sent."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from fastwan.serve.events import Channel, Event
from fastwan.serve.failures import Refused
from fastwan.serve.jobs import Job
from fastwan.serve.service import Service
from fastwan.serve.wire import Video

MOST = 256
"""Readers at a time. Each holds a connection and, while it reads, the bytes of its video."""

LAST = "end"
"""Id of the last event of a job: a reader that has seen it has seen everything."""

NOT_KEPT = {"cache-control": "no-store", "x-accel-buffering": "no"}
"""Headers of such an answer: nor may a proxy keep back what was sent."""

_TICK = 0.5
"""Seconds from one look at the queue to the next."""

_KEEP_ALIVE = 30
"""Ticks after which a silent connection gets a comment, so that no proxy takes it for dead."""

_FINAL = {"completed": "done", "failed": "failed", "cancelled": "cancelled"}


class Watchers:
    """Counts the readers of one server, all on its event loop.

    Attributes:
        most: that are let in.
        now: that are there.
    """

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self.now = 0

    def take(self) -> None:
        """Let one more in, until it is told to leave.

        Raises:
            Refused: there are too many.
        """
        if self.now >= self.most:
            raise Refused(
                503,
                f"{self.most} readers are watching already",
                code="too_many_watchers",
                headers={"retry-after": "1"},
            )
        self.now += 1

    def leave(self) -> None:
        """Let one go."""
        self.now -= 1


def message(name: str, data: Mapping[str, Any], number: int | str | None = None) -> bytes:
    """A server-sent event.

    Args:
        number: its id; None for one that is not counted.
    """
    head = f"id: {number}\n" if number is not None else ""
    text = json.dumps(data, separators=(",", ":"))
    return f"{head}event: {name}\ndata: {text}\n\n".encode()


async def events(service: Service, job: Job, after: int) -> AsyncGenerator[bytes]:
    """What happened to a job and what happens to it, as server-sent events, until its end.

    Args:
        after: number of the last event that the reader has seen; -1 for none.
    """
    channel = service.channels.get(job.id)
    if channel is not None:
        async with aclosing(_happenings(service, job.id, channel, after)) as happenings:
            async for each in happenings:
                yield each
    yield _last(service, job)


async def _happenings(
    service: Service, job_id: str, channel: Channel, after: int
) -> AsyncGenerator[bytes]:
    """All but the last event of a job, from behind `after` on."""
    number, silent, told = -1, 0, None
    decoded = False
    async with aclosing(channel.follow(_TICK)) as following:
        async for event in following:
            place = service.queue.place(job_id)
            if place is not None and place != told:
                # It changes without an event of the job's own.
                told, silent = place, 0
                yield message("queued", {"place": place})
            if event is None:
                silent += 1
                if silent % _KEEP_ALIVE == 0:
                    yield b": still here\n\n"
                continue
            number, silent = number + 1, 0
            if event.kind == "done":
                return
            if event.kind == "frames" and not decoded:
                decoded = True
                if number > after:
                    yield message("first_frame", event.data)
            if event.kind not in ("queued", "chunk") and number > after:
                yield message(event.kind, event.data, number)


def _last(service: Service, job: Job) -> bytes:
    """How the job stands at its end: all that there is to know of it."""
    now = service.store.get(job.id)
    if now is None:
        return message("deleted", {"id": job.id}, LAST)
    name = _FINAL.get(now.status)
    video = Video.of(now).model_dump()
    # A server that ends leaves the job for the next one: whoever comes again is told of that.
    return message("interrupted", video) if name is None else message(name, video, LAST)


class _CutShort(Exception):
    """The video ends before its end."""


class WatcherAnswer(StreamingResponse):
    """An answer to a reader that stays, who is counted until it ends.

    Where its body ends with `_CutShort`, the connection is closed in the middle of the body: what
    was sent of a video is no whole one, and a client can tell.

    Args:
        watchers: that the reader was let in by.
    """

    def __init__(self, body: AsyncIterator[bytes], media_type: str, watchers: Watchers) -> None:
        super().__init__(body, media_type=media_type, headers=NOT_KEPT)
        self._watchers = watchers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except* _CutShort:
            pass
        finally:
            self._watchers.leave()


async def bytes_of(first: Event, following: AsyncIterator[Event | None]) -> AsyncIterator[bytes]:
    """Bytes of a video as it is made.

    Args:
        first: with the first of them.
        following: what comes behind it.
    """
    yield first.body
    async for event in following:
        if event is None:
            continue
        if event.kind == "chunk":
            yield event.body
        elif event.kind == "broken" or event.data.get("status", "completed") != "completed":
            raise _CutShort
