"""The standard streams: results on stdout, one line a message on stderr, whatever they lead to.

A terminal may lack characters, a reader may go away, a stream may be closed from the start.
Progress and messages are a convenience and are dropped then; a result that cannot be written is an
error.
"""

from __future__ import annotations

import io
import os
import re
import sys
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Literal, TextIO, cast

from fastwan.errors import BadInput, EnvironmentLacks, FastWanWarning

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fastwan.schema import Report

MAX_LINE = 2000
"""Characters of a message; the middle of a longer one is left out."""

_CLOSED: set[int] = set()  # standard descriptors that were closed when the command started
_SPACES = re.compile(r"[ \t\n\r\v\f]+")
_HIDDEN = {"Cc", "Cs", "Zl", "Zp"}  # categories: controls, halves of pairs, ends of lines
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks that change the direction of what follows them."""


class ReaderGone(Exception):
    """The reader of stdout has closed it, as ``head`` does; there is nothing more to do."""


def prepare_streams() -> None:
    """Make the standard streams safe to write to; call it before anything opens a file.

    A closed one leads to the null device: the next file to be opened would take its number, and
    messages of libraries would be written into it. What an encoding lacks is written as an escape.
    """
    _CLOSED.clear()
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            _CLOSED.add(number)
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def require_stdout() -> None:
    """Refuse to work where nobody can be told the result.

    Raises:
        EnvironmentLacks: stdout was closed when the command started.
    """
    if 1 in _CLOSED:
        raise EnvironmentLacks("stdout is closed", fix="lead it somewhere, such as >/dev/null")


def one_line(text: str) -> str:
    """`text` as one line that a terminal shows as it is: control characters as escapes."""
    with suppress(UnicodeEncodeError):  # characters that no path can have here
        text = os.fsencode(text).decode("utf-8", "backslashreplace")  # see `typed_text`
    shown = "".join(map(_visible, " ".join(_SPACES.split(text)).strip()))
    if len(shown) > MAX_LINE:
        half = MAX_LINE // 2
        shown = f"{shown[:half]} ... {shown[-half:]}"
    return shown


def _visible(character: str) -> str:
    if unicodedata.category(character) not in _HIDDEN and character not in _TURNING:
        return character
    return character.encode("unicode_escape").decode()


def say(text: str) -> None:
    """Write one line to stderr; dropped where it cannot be written."""
    try:
        print(one_line(text), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _drop("stderr")


def tell(text: str) -> None:
    """Write a result, of one line or several, to stdout.

    Raises:
        ReaderGone: nobody reads it any more.
        EnvironmentLacks: it cannot be written, as on a full disk.
    """
    stdout = Stdout()
    stdout.write(f"{text}\n")
    stdout.flush()


class Stdout:
    """stdout as a file for a library; its methods raise what `tell` raises."""

    @property
    def encoding(self) -> str:
        return sys.stdout.encoding

    def isatty(self) -> bool:
        return sys.stdout.isatty()

    def fileno(self) -> int:
        return sys.stdout.fileno()

    def write(self, text: str) -> int:
        with _told():
            return sys.stdout.write(text)

    def flush(self) -> None:
        with _told():
            sys.stdout.flush()


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        _drop("stdout")
        if isinstance(error, BrokenPipeError):
            raise ReaderGone from None
        reason = error.strerror if isinstance(error, OSError) else error
        raise EnvironmentLacks(f"the result cannot be written: {reason}", where="stdout") from None


def _drop(name: str) -> None:
    """Lead a stream to the null device; what it still holds would fail again at the exit."""
    stream: TextIO = getattr(sys, name)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, stream.fileno())
    except (OSError, ValueError):  # no descriptor, or a closed one
        setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    finally:
        os.close(null)


def typed_text(argument: str, where: str) -> str:
    """What the user typed, also where the locale has no characters for it.

    Python keeps bytes that it cannot decode as half surrogates; those are UTF-8 nearly always.

    Raises:
        BadInput: it is not.
    """
    try:
        argument.encode()
        return argument
    except UnicodeEncodeError:
        pass
    try:
        return os.fsencode(argument).decode()
    except UnicodeError:
        raise BadInput("not UTF-8", where=where, fix="type it on a UTF-8 terminal") from None


def print_json(report: Report) -> None:
    """Write a report to stdout as one JSON object."""
    tell(report.to_json())


_NARROWEST, _WIDTH = 20, 80
"""Columns below which no table can be read, and those that are used then."""

UNBOUNDED = 10_000
"""Columns of a file or a pipe: a row is a line, and no name is cut."""

WIDE = 100
"""Columns from which on there is room for notes beside what they are of."""


Color = Literal["auto", "always", "never"]


class Look:
    """How results look: chosen once for the whole command line."""

    color: Color = "auto"


def print_rich(text: RenderableType) -> None:
    """Write tables to stdout: for a terminal's columns, or as whole lines where it is none."""
    from rich.console import Console

    console = Console(
        file=cast("IO[str]", Stdout()),
        highlight=False,
        no_color=True if Look.color == "never" else None,
        color_system="standard" if Look.color == "always" else "auto",
        force_terminal=True if Look.color == "always" else None,
    )
    if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
        console.width = UNBOUNDED
        with console.capture() as captured:
            console.print(text)
        tell("\n".join(line.rstrip() for line in captured.get().rstrip("\n").split("\n")))
        return
    if console.width < _NARROWEST:  # as where COLUMNS is 0: nothing would be shown
        console.width = _WIDTH
    console.print(text)


_show_other_warning = warnings.showwarning


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print this tool's warnings as one line each, like its errors; leave those of libraries."""
    if issubclass(category, FastWanWarning):
        say(f"warning: {message}")
    else:
        _show_other_warning(message, category, filename, lineno, file, line)
