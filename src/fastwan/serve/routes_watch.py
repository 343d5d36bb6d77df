"""The routes that follow a video while it is made."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response, StreamingResponse

from fastwan.runtime.fragments import codecs_of
from fastwan.serve.access import TheJob, TheService
from fastwan.serve.content import VIDEO
from fastwan.serve.events import Channel
from fastwan.serve.failures import Refused
from fastwan.serve.routes_videos import errors, video_content
from fastwan.serve.watching import LAST, NOT_KEPT, WatcherAnswer, Watchers, bytes_of, events

router = APIRouter(prefix="/v1/videos", tags=["videos"])

_SSE = "text/event-stream"
_TICK = 1.0
"""Seconds from one look at a waiting client's connection to the next."""


@router.get(
    "/{video_id}/events",
    response_class=StreamingResponse,
    responses={
        200: {"content": {_SSE: {}}},
        204: {"description": "Everything was told."},
        **errors(400, 401, 404, 503),
    },
)
async def video_events(
    request: Request,
    service: TheService,
    job: TheJob,
    last_event_id: Annotated[
        str | None, Header(max_length=32, description="Of the last event that was seen.")
    ] = None,
) -> Response:
    """Server-sent events of a job, from its first on, until it is done, failed or cancelled."""
    if last_event_id == LAST:
        return Response(status_code=204)  # a browser comes again after any other answer
    if request.method == "HEAD":
        return _head(_SSE)
    watchers: Watchers = request.app.state.watchers
    watchers.take()
    seen = (last_event_id or "").strip()
    after = int(seen) if seen.isascii() and seen.isdecimal() else -1
    return WatcherAnswer(events(service, job, after), _SSE, watchers)


@router.get(
    "/{video_id}/stream",
    response_class=StreamingResponse,
    responses={
        200: {"content": {"video/mp4": {}}},
        206: {"content": {"video/mp4": {}}},
        **errors(400, 401, 404, 409, 416, 503),
    },
)
async def video_stream(request: Request, service: TheService, job: TheJob) -> Response:
    """The video as it is made: a fragmented mp4 from its first frame on.

    The answer begins with the first frame. Of a video that is finished, or whose first frame was
    made when nobody waited for it, it is the file of ``content``, once that is there.
    """
    channel = service.channels.get(job.id)
    if channel is None:
        return video_content(request, service, job)
    if request.method == "HEAD":
        return _head(VIDEO)
    watchers: Watchers = request.app.state.watchers
    watchers.take()
    answer = None
    try:
        answer = await _live(request, channel, watchers)
    finally:
        if answer is None:
            watchers.leave()
    if answer is not None:
        return answer
    now = await run_in_threadpool(service.store.get, job.id)
    if now is None:
        raise Refused(404, "the video was deleted", code="video_not_found", param="video_id")
    return await run_in_threadpool(video_content, request, service, now)


def _head(kind: str) -> Response:
    """The head of an answer whose length nobody knows yet."""
    return StreamingResponse(iter(()), media_type=kind, headers=NOT_KEPT)


async def _live(request: Request, channel: Channel, watchers: Watchers) -> Response | None:
    """The answer to one who waits for a first frame; None where no live video comes."""
    following = channel.follow(_TICK)
    with channel.watched():
        async for event in following:
            if event is not None and event.kind == "chunk":
                # The head of the video comes whole.
                codecs = codecs_of(event.body)
                kind = f'{VIDEO}; codecs="{codecs}"' if codecs else VIDEO
                return WatcherAnswer(bytes_of(event, following), kind, watchers)
            if event is None and await request.is_disconnected():
                break
    await following.aclose()
    return None
