"""The application: routes over a service."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute

import fastwan
from fastwan.serve import routes_page, routes_server, routes_videos, routes_watch
from fastwan.serve.auth import Clients
from fastwan.serve.body import BodyLimit
from fastwan.serve.counting import CountRequests
from fastwan.serve.document import describe
from fastwan.serve.failures import add_handlers
from fastwan.serve.origins import SameOrigin
from fastwan.serve.player import Player
from fastwan.serve.service import Service
from fastwan.serve.settings import Settings
from fastwan.serve.watching import Watchers


def create_app(settings: Settings, player: Player) -> FastAPI:
    """An application whose worker runs from its start to its end.

    Args:
        player: closed with the application.

    Raises:
        BadInput: the folder is another server's or holds something else.
        EnvironmentLacks: it cannot be written.
    """
    service = Service(settings, player)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await run_in_threadpool(service.close)

    app = FastAPI(
        title="fastwan-export", version=fastwan.__version__, lifespan=lifespan,
        description="Videos of a bundle, in the form of the public videos API.",
        docs_url=None, redoc_url=None,
    )  # fmt: skip
    app.state.service = service
    app.state.clients = Clients(settings.tokens)
    app.state.watchers = Watchers()
    app.state.created = int(time.time())
    add_handlers(app)
    describe(app, service.offer, settings)
    for part in (routes_videos, routes_watch, routes_server, routes_page):
        app.include_router(part.router)
        _add_heads(app, part.router)
    app.add_middleware(SameOrigin, local=settings.is_local and not settings.tokens)
    app.add_middleware(BodyLimit, longest=settings.longest_body)
    app.add_middleware(CountRequests, metrics=service.metrics)
    return app


def _add_heads(app: FastAPI, router: APIRouter) -> None:
    """Answer HEAD wherever a router answers GET, as RFC 9110, section 9.1, asks of every server.

    The HTTP server leaves out the body of such an answer.
    """
    for route in router.routes:
        if isinstance(route, APIRoute) and "GET" in (route.methods or ()):
            app.add_api_route(route.path, route.endpoint, methods=["HEAD"], include_in_schema=False)
