"""The one reader of JSON files: it takes what RFC 8259 describes and nothing that may surprise.

`json.loads` keeps the last of two equal keys, knows NaN, turns 1e999 into infinity, and its callers
open whatever lies at a path. A manifest or a configuration decides what is built, so all of that is
refused here, in one line that names the file.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from fastwan.errors import BadInput
from fastwan.files import open_regular

M = TypeVar("M", bound=BaseModel)

MAX_BYTES = 64 << 20
"""Largest file by default; the layer records of a full-size bundle take a few MB."""

MAX_DEPTH = 32
"""Objects and arrays in each other, the outermost one included."""

MAX_NUMBER = 64
"""Characters of a number; a double needs 24 at most."""

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_OPEN_AND_CLOSE = bytes.maketrans(b"[]", b"{}")
_NO_BRACKET = bytes(byte for byte in range(256) if byte not in b"[]{}")


def read_json(path: Path, *, where: str = "", max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        where: named in errors; by default the path.
        max_bytes: size beyond which the file is refused, unread.

    Raises:
        BadInput: no regular file (a pipe or a device is not waited for), not readable, too large,
            or see `parse_json`.
    """
    where = where or str(path)
    try:
        with open_regular(path) as stream:
            data = stream.read(max_bytes + 1)
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror or error}", where=where) from None
    if len(data) > max_bytes:
        raise BadInput(f"too large: more than {max_bytes:,} bytes of JSON", where=where)
    return parse_json(data, where)


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """Parse one JSON object.

    Args:
        data: UTF-8.
        where: named in errors.

    Raises:
        BadInput: not UTF-8, not JSON, not an object, a key given twice, NaN or infinity by name or
            by size, a number longer than `MAX_NUMBER`, half a surrogate pair, or deeper than
            `MAX_DEPTH`.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    raise BadInput(f"key {quoted(key)} is given twice", where=where)
                seen.add(key)
        return result

    def constant(word: str) -> None:
        raise BadInput(f"{word} is not JSON", where=where)

    def whole(text: str) -> int:
        return int(_bounded(text, where))

    def real(text: str) -> float:
        value = float(_bounded(text, where))
        vanished = value == 0 and any(digit in "123456789" for digit in re.split("[eE]", text)[0])
        if vanished or not math.isfinite(value):
            raise BadInput(f"number {text} is beyond what a double holds", where=where)
        return value

    try:
        parsed = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=unique,
            parse_constant=constant,
            parse_int=whole,
            parse_float=real,
        )
    except (ValueError, RecursionError) as error:
        raise BadInput(f"not valid JSON: {str(error)[:120]}", where=where) from None
    if not isinstance(parsed, dict):
        raise BadInput("JSON is not an object", where=where)
    if _deeper(data, MAX_DEPTH):
        raise BadInput(f"JSON is nested deeper than {MAX_DEPTH} levels", where=where)
    if b"\\u" in data and _has_lone_surrogate(parsed):
        raise BadInput("a string holds half a surrogate pair", where=where)
    return parsed


def validated(kind: type[M], fields: dict[str, Any]) -> M:
    """A pydantic model of what `parse_json` gave, with JSON's own types.

    A number in quotes is no number and ``true`` is not 1, as pydantic would have it otherwise.

    Raises:
        ValidationError: a field of another type or beyond its bounds.
        BadInput: of a validator of the model.
    """
    return kind.model_validate_json(json.dumps(fields), strict=True)


def first_fault(error: ValidationError) -> str:
    """The first thing that a model found wrong, and in which field."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    what = first["msg"].removeprefix("Value error, ")
    return f"{what} in {field!r}" if field else what


def tuples(value: object) -> object:
    """A value with a tuple for every list.

    A validator in front of a model hands on Python's values, of which pydantic takes no list for a
    tuple where it is strict.
    """
    if isinstance(value, dict):
        return {key: tuples(each) for key, each in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list) else value


def quoted(text: str) -> str:
    """A string from a file as an error quotes it: ASCII, in quotes, not longer than a line."""
    return ascii(text if len(text) <= 120 else text[:117] + "...")


def _bounded(number: str, where: str) -> str:
    if len(number) > MAX_NUMBER:
        raise BadInput(f"a number of {len(number)} characters", where=where)
    return number


def _deeper(data: bytes, limit: int) -> bool:
    """Whether a valid JSON text nests deeper than `limit`, without a walk in Python.

    Only brackets are kept; each round removes the innermost pairs.
    """
    brackets = _STRING.sub(b"", data).translate(_OPEN_AND_CLOSE, _NO_BRACKET)
    for _ in range(limit):
        if not brackets:
            return False
        brackets = brackets.replace(b"{}", b"")
    return bool(brackets)


def _has_lone_surrogate(parsed: dict[str, Any]) -> bool:
    try:
        json.dumps(parsed, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
