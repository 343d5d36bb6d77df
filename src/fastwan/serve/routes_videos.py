"""The routes below ``/v1/videos``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from fastwan.serve.access import Client, Owner, TheJob, TheService
from fastwan.serve.body import read_create
from fastwan.serve.content import VIDEO, content
from fastwan.serve.failures import Refused
from fastwan.serve.jobs import Job
from fastwan.serve.queue import QueueFull
from fastwan.serve.service import Draining, KeyReused, Service
from fastwan.serve.wire import ErrorAnswer, Video, VideoDeleted, VideoList

router = APIRouter(prefix="/v1/videos", tags=["videos"])

Answers = dict[int | str, dict[str, Any]]


def errors(*statuses: int) -> Answers:
    """Answers of a route that are errors, for its document."""
    return {status: {"model": ErrorAnswer} for status in statuses}


def shown(service: Service, job: Job) -> Video:
    """A job with the step that it is at."""
    return Video.of(job, service.step(job))


@router.post("", responses=errors(400, 401, 409, 413, 415, 429, 503))
async def create_video(
    request: Request,
    service: TheService,
    client: Client,
    idempotency_key: Annotated[
        str | None,
        Header(min_length=1, max_length=255, description="Requests of one key are one job."),
    ] = None,
) -> Video:
    """Ask for a video. The body is JSON or a form."""
    create, digest = await read_create(request)
    try:
        job = await run_in_threadpool(
            service.submit, client, create, key=idempotency_key, digest=digest
        )
    except KeyReused:
        raise Refused(
            409,
            "this idempotency key came with another request before",
            code="idempotency_key_reused",
            param="Idempotency-Key",
        ) from None
    except QueueFull as full:
        wait = {"retry-after": str(service.retry_after(full))}
        if full.of_client:
            message = "too many of this client's videos wait"
            raise Refused(429, message, code="client_share_used", headers=wait) from None
        raise Refused(503, "too many videos wait", code="queue_full", headers=wait) from None
    except Draining:
        message = "the server is about to end"
        wait = {"retry-after": str(service.retry_after())}
        raise Refused(503, message, code="draining", headers=wait) from None
    return await run_in_threadpool(shown, service, job)


@router.get("", responses=errors(400, 401))
def list_videos(
    service: TheService,
    owner: Owner,
    after: Annotated[str | None, Query(max_length=64, description="Id before the page.")] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> VideoList:
    """Jobs in the order of their acceptance."""
    jobs, more = service.store.page(
        client=owner, after=after, limit=limit, newest_first=order == "desc"
    )
    videos = [shown(service, job) for job in jobs]
    return VideoList(
        data=videos,
        first_id=videos[0].id if videos else None,
        last_id=videos[-1].id if videos else None,
        has_more=more,
    )


@router.get("/{video_id}", responses=errors(400, 401, 404))
def retrieve_video(service: TheService, job: TheJob) -> Video:
    """A job as it is now."""
    return shown(service, job)


@router.delete("/{video_id}", responses=errors(400, 401, 404))
def delete_video(service: TheService, job: TheJob) -> VideoDeleted:
    """Forget a job and its video; one that is not finished is cancelled."""
    service.remove(job)
    return VideoDeleted(id=job.id)


@router.post("/{video_id}/cancel", responses=errors(400, 401, 404))
def cancel_video(service: TheService, job: TheJob) -> Video:
    """End a job that is not finished, after the step that is being made; its record stays."""
    service.cancel(job)
    return shown(service, service.store.get(job.id) or job)


@router.get(
    "/{video_id}/content",
    response_class=Response,
    responses={
        200: {"content": {VIDEO: {}}},
        206: {"content": {VIDEO: {}}, "description": "A range of it."},
        304: {"description": "The client has it."},
        **errors(400, 401, 404, 409, 416),
    },
)
def video_content(
    request: Request, service: TheService, job: TheJob, variant: Literal["video"] = "video"
) -> Response:
    """The video of a completed job as mp4, or a range of it."""
    try:
        if job.has_content:
            path, head = service.results.path(job.id), request.method == "HEAD"
            return content(path, job.id, request.headers, head=head)
    except FileNotFoundError:
        pass  # it made room, or somebody deleted it
    if job.status in ("queued", "in_progress"):
        raise Refused(409, f"the video is not there yet: {job.status}", code="video_not_ready")
    raise Refused(404, f"the video is not there: {job.status}", code="video_has_no_content")
