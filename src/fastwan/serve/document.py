"""The OpenAPI document: what this server takes and answers, as the bundle it serves has it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from fastwan.serve.offer import Offer, lengths
from fastwan.serve.settings import Settings
from fastwan.serve.wire import CreateVideo, size_text

_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
_METHODS = ("get", "post", "delete")

_VISIBLE = (
    r"[^\s\u0000-\u0020\u007f-\u00a0\u00ad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u1680"
    r"\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff\ufff9-\ufffb]"
)
"""A character that says something, see `fastwan.runtime.model.prompt`."""


def describe(app: FastAPI, offer: Offer, settings: Settings) -> None:
    """Have an application hand out its document."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, offer, settings)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _document(app: FastAPI, offer: Offer, settings: Settings) -> dict[str, Any]:
    made = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    schemas = made["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for operation in _operations(made):
        operation["responses"].pop("422", None)  # see `fastwan.serve.failures`
        if not settings.tokens:
            operation.pop("security", None)
    if not settings.tokens:
        made["components"].pop("securitySchemes", None)
    fields = _fields(offer, settings)
    body = {"type": "object", "additionalProperties": False, "required": ["prompt"]}
    schemas["CreateVideo"] = {**body, "properties": _nullable(fields)}
    schemas["CreateVideoForm"] = {**body, "properties": fields}
    content = {"application/json": _reference("CreateVideo")}
    content |= {form: _reference("CreateVideoForm") for form in _FORMS}
    create = made["paths"]["/v1/videos"]["post"]
    create["requestBody"] = {"required": True, "content": content}
    return made


def _operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for path in document["paths"].values():
        yield from (operation for method, operation in path.items() if method in _METHODS)


def _reference(name: str) -> dict[str, Any]:
    return {"schema": {"$ref": f"#/components/schemas/{name}"}}


def _fields(offer: Offer, settings: Settings) -> dict[str, Any]:
    """Fields of a request with the values that the bundle can serve."""
    seconds = [each for shape in offer.shapes for each in lengths(shape, offer.fps)]
    text = {"type": "string", "minLength": 1, "maxLength": settings.longest_prompt}
    fields: dict[str, Any] = {
        "prompt": {**text, "pattern": _VISIBLE},
        "model": _one_of([offer.model]),
        "seconds": _one_of(seconds),
        "size": _one_of([size_text(shape) for shape in offer.shapes]),
        "num_frames": {**_one_of([each.num_frames for each in offer.shapes]), "type": "integer"},
        "seed": {"type": "integer", "minimum": 0, "maximum": (1 << 64) - 1},
        "sampler": _one_of(list(offer.samplers)),
        "negative_prompt": {**text, "minLength": 0},
        "guidance_scale": {"type": "number", "maximum": 1},
    }
    if any(spec.guidance != 1 for spec in offer.samplers.values()):
        del fields["guidance_scale"]["maximum"]
    else:
        del fields["negative_prompt"]
    for name, field in fields.items():
        field["description"] = CreateVideo.model_fields[name].description
    return fields


def _one_of(values: list[Any]) -> dict[str, Any]:
    return {"type": "string", "enum": list(dict.fromkeys(values))}


def _nullable(fields: dict[str, Any]) -> dict[str, Any]:
    """The same for JSON, in which null leaves a field out and a length may be a number."""
    nullable = {}
    for name, field in fields.items():
        kinds = [field["type"]] if name == "prompt" else [field["type"], "null"]
        values = field.get("enum")
        nullable[name] = {**field, "type": kinds if len(kinds) > 1 else kinds[0]}
        if values:
            nullable[name]["enum"] = [*values, None]
        if name == "seconds":
            nullable[name]["type"] = [*kinds, "number"]
            nullable[name]["enum"] = [*values, *(float(each) for each in values), None]
    return nullable
