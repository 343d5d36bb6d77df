"""Every answer that is an error, in the form of the public API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from fastwan.errors import BadInput
from fastwan.serve.wire import ErrorAnswer, ErrorDetail

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class Refused(Exception):
    """A request is answered with an error.

    Args:
        status: of HTTP.
        code: what programs look at.
        param: field of the request that is at fault.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = headers


def answer(
    status: int,
    message: str,
    *,
    code: str | None = None,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """An error as the API's clients read it."""
    detail = ErrorDetail(
        message=message,
        type=_TYPES.get(status, "invalid_request_error"),
        param=param,
        code=code,
    )
    content = ErrorAnswer(error=detail).model_dump()
    return JSONResponse(content, status, headers=dict(headers or {}))


def invalid(errors: Sequence[Any]) -> tuple[str, str | None]:
    """The first of pydantic's errors as a message, and the field that it is about."""
    first = errors[0]
    place = [str(each) for each in first["loc"]]
    if len(place) > 1 and place[0] in ("query", "path", "header"):
        del place[0]
    param = ".".join(place) or None
    text = str(first["msg"])
    return (f"{param}: {text}" if param else text), param


def _methods(app: FastAPI, path: str) -> list[str]:
    """Methods of a path; the router names those of its first route alone."""
    documented = {
        method.upper()
        for template, operations in app.openapi()["paths"].items()
        if compile_path(template)[0].fullmatch(path)
        for method in operations
    }
    return sorted(documented | {"HEAD"} if "GET" in documented else documented)


def add_handlers(app: FastAPI) -> None:
    """Have an application answer all errors in this form."""

    @app.exception_handler(Refused)
    def refused(_: Request, error: Refused) -> JSONResponse:
        return answer(
            error.status, str(error), code=error.code, param=error.param, headers=error.headers
        )

    @app.exception_handler(BadInput)
    def bad_input(_: Request, error: BadInput) -> JSONResponse:
        return answer(400, str(error), code="invalid_value", param=error.where or None)

    @app.exception_handler(ValidationError)
    @app.exception_handler(RequestValidationError)
    def bad_request(_: Request, error: Any) -> JSONResponse:
        message, param = invalid(error.errors())
        return answer(400, message, code="invalid_value", param=param)

    @app.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        if error.status_code == 405 and (methods := _methods(app, request.url.path)):
            headers = {"allow": ", ".join(methods)}
        return answer(error.status_code, str(error.detail), headers=headers)

    @app.exception_handler(Exception)
    def unexpected(_: Request, error: Exception) -> JSONResponse:
        return answer(500, f"{HTTPStatus(500).phrase}: {type(error).__name__}")
