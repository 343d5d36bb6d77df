"""What a route is given: the service, the client, and a job that the client may see.

What waits for nothing is a coroutine: FastAPI calls a function on a thread, and each change of
threads takes the interpreter from the one that makes a video.
"""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends, Path, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from fastwan.serve.auth import Clients
from fastwan.serve.failures import Refused
from fastwan.serve.jobs import Job
from fastwan.serve.service import Service

_bearer = HTTPBearer(auto_error=False, description="A token of the server's file.")


async def _service(request: Request) -> Service:
    return cast(Service, request.app.state.service)


TheService = Annotated[Service, Depends(_service)]


async def _client(
    request: Request,
    service: TheService,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
) -> str:
    clients: Clients = request.app.state.clients
    address = request.client.host if request.client else ""
    token = credentials.credentials if credentials else None
    client = clients.identify(token, address)
    if client is None:
        raise Refused(
            401,
            "a bearer token of this server is needed",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )
    return client


Client = Annotated[str, Depends(_client)]
"""Name of the client; a request without a token is refused where tokens are needed."""


async def _owner(request: Request, client: Client) -> str | None:
    clients: Clients = request.app.state.clients
    return client if clients.are_private else None


Owner = Annotated[str | None, Depends(_owner)]
"""Whose jobs the client sees; None for everybody's."""


def _job(
    service: TheService,
    owner: Owner,
    video_id: Annotated[str, Path(description="Id of a job.")],
) -> Job:
    job = service.store.get(video_id)
    if job is None or owner not in (None, job.client):
        raise Refused(
            404, f"there is no video {video_id}", code="video_not_found", param="video_id"
        )
    return job


TheJob = Annotated[Job, Depends(_job)]
"""The job of the path; 404 where the client has none of this id."""
