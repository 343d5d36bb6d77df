"""The page at ``/``: files of the package, and what a browser may do with them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Request
from fastapi.responses import Response

from fastwan.serve.failures import Refused

router = APIRouter(include_in_schema=False)

_KINDS = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "media-src 'self' blob:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""Nothing comes from anywhere else, nothing stands inline, and no other page shows this one."""

_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}


@dataclass(frozen=True)
class _File:
    body: bytes
    kind: str
    tag: str


def _read() -> Iterator[tuple[str, _File]]:
    for each in files("fastwan.serve").joinpath("page").iterdir():
        kind = _KINDS.get(each.name[each.name.rfind(".") :])
        if kind is not None:
            body = each.read_bytes()
            yield each.name, _File(body, kind, f'"{hashlib.sha256(body).hexdigest()[:32]}"')


@cache
def page_files() -> dict[str, _File]:
    """The files of the page by name; a request chooses among these names alone."""
    return dict(_read())


def _sent(request: Request, name: str) -> Response:
    file = page_files().get(name)
    if file is None:
        raise Refused(404, f"the page has no file {name}")
    headers = {**_HEADERS, "etag": file.tag}
    if file.tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.body, media_type=file.kind, headers=headers)


@router.get("/")
def page(request: Request) -> Response:
    """The page."""
    return _sent(request, "index.html")


@router.get("/page/{name}")
def page_file(request: Request, name: str) -> Response:
    """A file that the page is made of."""
    return _sent(request, name)
