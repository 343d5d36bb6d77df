"""A JSON configuration of a checkpoint, read field by field within bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastwan.errors import BadInput
from fastwan.strict_json import read_json

SMALLEST = 2.0**-126
"""Smallest number that fp32 holds with all its digits, and that no GPU flushes to zero."""

_MAX_BYTES = 1_000_000


class ConfigFile:
    """A JSON object on disk with typed getters, whose errors name file and field.

    Raises:
        BadInput: see `read_json`; a configuration has at most 1 MB.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fields: dict[str, Any] = read_json(path, max_bytes=_MAX_BYTES)

    def integer(self, name: str, most: int, default: int | None = None, least: int = 1) -> int:
        """A whole number within bounds; without a default the field has to be there."""
        value = self.fields.get(name, default)
        if type(value) is not int or value < least:
            expected = "a positive whole number" if least == 1 else f"a whole number from {least:,}"
            raise self.bad(f"{name} is {shown(value)}, expected {expected}")
        if value > most:
            raise self.bad(f"{name} is {shown(value)}, beyond {most:,}, the most that is read")
        return value

    def number(self, name: str, default: float) -> float:
        """A number between 0 and 1 that is not 0 in fp32 either."""
        value = self.fields.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
            raise self.bad(f"{name} is {shown(value)}, expected a number between 0 and 1")
        if value < SMALLEST:
            raise self.bad(f"{name} is {shown(value)}, which is 0 to a GPU in fp32")
        return float(value)

    def require(self, name: str, allowed: tuple[object, ...], default: object) -> None:
        """Refuse a field that has none of the `allowed` values."""
        value = self.fields.get(name, default)
        if not any(type(value) is type(item) and value == item for item in allowed):
            expected = " or ".join(shown(item) for item in allowed)
            raise self.bad(f"{name} {shown(value)} is not supported, expected {expected}")

    def bad(self, what: str, fix: str = "") -> BadInput:
        return BadInput(what, where=str(self.path), fix=fix)


def shown(value: object) -> str:
    """A JSON value as an error shows it: on one line, not longer than 80 characters."""
    words = {None: "null", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value]
    return ascii(value)[:80]
