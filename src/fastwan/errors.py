"""Errors a user can mend, one class for each documented exit code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class FastWanError(Exception):
    """Base of all expected failures.

    Args:
        what: what is wrong, without a full stop.
        where: file, tensor, option or node that is at fault; left out when empty.
        fix: what the user can do about it; left out when empty.

    ``str(error)`` is one line: ``what (where): fix``.
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what = what
        self.where = where
        self.fix = fix
        line = f"{what} ({where})" if where else what
        line = f"{line}: {fix}" if fix else line
        super().__init__(" ".join(line.split()))


class BadInput(FastWanError):
    """A file, tensor, option or bundle is not what it has to be. Exit code 2."""

    exit_code = 2


class EnvironmentLacks(FastWanError):
    """A GPU, driver, library or package is missing or of a wrong version. Exit code 3."""

    exit_code = 3


class VerificationFailed(FastWanError):
    """An accuracy, coverage or integrity limit was passed. Exit code 4."""

    exit_code = 4


class SlowerThanBaseline(FastWanError):
    """A measured time is beyond the limit that a baseline sets. Exit code 5."""

    exit_code = 5


class FastWanWarning(UserWarning):
    """The work goes on, slower or without something. One line, like an error."""


def first_line(error: Exception) -> str:
    """The first line of another library's error, within 300 characters."""
    return str(error).strip().split("\n", 1)[0][:300]


def listed(names: Sequence[str], most: int = 3) -> str:
    """Names that come from others as an error has them: the first ones, the rest counted."""
    first = ", ".join(ascii(name[:120])[1:-1] for name in names[:most])
    return f"{first} and {len(names) - most} more" if len(names) > most else first


def shown(value: object, longest: int = 60) -> str:
    """`value` and its type for an error, cut where it is long."""
    try:
        text = repr(value)
    except Exception:  # of a class of the caller's, or an integer of thousands of digits
        text = "a value that cannot be shown"
    text = text if len(text) <= longest else f"{text[:longest]}..."
    return f"{text} ({type(value).__name__})"
