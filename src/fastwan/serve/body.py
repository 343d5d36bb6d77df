"""The body of a request: bounded, as JSON or as a form."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import python_multipart  # noqa: F401  # starlette reads forms by it, and asks for it late
from fastapi import Request
from starlette.datastructures import Headers, UploadFile
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastwan.errors import BadInput
from fastwan.serve.failures import Refused, answer
from fastwan.serve.wire import CreateVideo
from fastwan.strict_json import parse_json

_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
_FIELDS = 32


class BodyLimit:
    """Middleware that refuses a body of more than some bytes, declared or not."""

    def __init__(self, app: ASGIApp, longest: int) -> None:
        self._app = app
        self._longest = longest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        message = f"the body is longer than {self._longest:,} bytes"
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > self._longest:
            return await answer(413, message, code="too_long")(scope, receive, send)
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            received = await receive()
            seen += len(received.get("body", b""))
            if seen > self._longest:
                raise Refused(413, message, code="too_long")
            return received

        await self._app(scope, counted, send)


async def read_create(request: Request) -> tuple[CreateVideo, str]:
    """The video that a body asks for, and a digest of its fields.

    Raises:
        Refused: neither JSON nor a form.
        BadInput, ValidationError: not what `CreateVideo` has.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in _FORMS:
        fields = await _form(request)
    elif kind == "application/json" or kind.endswith("+json"):
        fields = parse_json(await request.body(), "body")
    else:
        raise Refused(415, "the body is neither JSON nor a form", code="unsupported_media_type")
    if "input_reference" in fields:
        raise BadInput(
            "the model makes videos of text alone", where="input_reference", fix="leave it out"
        )
    # A form has text alone; of JSON a number is a number.
    create = CreateVideo.model_validate(fields, strict=kind not in _FORMS)
    known = json.dumps(create.model_dump(), sort_keys=True)
    return create, hashlib.sha256(known.encode()).hexdigest()


async def _form(request: Request) -> dict[str, Any]:
    async with request.form(max_files=1, max_fields=_FIELDS) as form:
        fields: dict[str, Any] = {}
        for name, value in form.multi_items():
            if name in fields:
                raise BadInput(f"{name} was given twice", where=name)
            fields[name] = "a file" if isinstance(value, UploadFile) else value
        return fields
