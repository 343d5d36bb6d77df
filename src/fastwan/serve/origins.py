"""Middleware that keeps the pages of other sites away: a browser sends their requests, too."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from fastwan.serve.failures import answer
from fastwan.serve.settings import LOCAL_HOSTS


class SameOrigin:
    """Refuses what a page of another origin asks for.

    A form of any page can be sent to a server of this machine; its ``Origin`` tells. And a name of
    somebody else's can be made to mean this machine, so that his page is of the same origin; its
    ``Host`` tells.

    Args:
        local: only this machine can connect, and no token is needed.
    """

    def __init__(self, app: ASGIApp, local: bool) -> None:
        self._app = app
        self._local = local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (fault := self._fault(Headers(scope=scope))):
            refusal = answer(403, fault, code="other_origin")
            return await refusal(scope, receive, send)
        await self._app(scope, receive, send)

    def _fault(self, headers: Headers) -> str:
        host, origin = headers.get("host", ""), headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return "a page of another origin asks for this"
        if self._local and _name(host) not in LOCAL_HOSTS:
            return "the server is asked under the name of another machine: see --tokens"
        return ""


def _name(host: str) -> str:
    """Host without its port; empty for none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
