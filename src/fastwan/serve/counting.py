"""Middleware that counts requests by route and status."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastwan.serve.metrics import Metrics

_OTHER = "other"
"""Stands for paths that are no route: anybody can invent them."""


class CountRequests:
    """Counts each answer when its head is sent."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", _OTHER)
                self._metrics.count_request(scope["method"], route, message["status"])
            await send(message)

        await self._app(scope, receive, counted)
