"""What ended a command, as one line and an exit code."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, Literal, NoReturn

import click

from fastwan.console import ReaderGone, prepare_streams, say
from fastwan.errors import BadInput, EnvironmentLacks, FastWanError
from fastwan.install import extra_of, how_to_install
from fastwan.signals import Terminated

INTERRUPTED = 130
READER_GONE = 141
"""128 + SIGPIPE, as of programs that the signal ends."""
UNEXPECTED = 1

_MACHINE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EFBIG,
    errno.EMFILE,
    errno.ENFILE,
    errno.EIO,
    errno.EAGAIN,
    errno.ENOSYS,
}
"""Errors of the machine; others are of the file that was named."""

_MEMORY = re.compile(
    r"bad[ _]alloc|allocate memory|out of memory|failed to map segment|can't start new thread"
    r"|thread.*Resource temporarily unavailable",
    re.IGNORECASE,
)
"""How libraries say that memory, or address space for a thread's stack, is used up."""


def explain(error: BaseException) -> tuple[str, int]:
    """The line for stderr, which may be empty, and the exit code."""
    match error:
        case ReaderGone():
            return "", READER_GONE
        case Terminated():
            return f"ended by {error}; nothing was left behind", error.code
        case KeyboardInterrupt():
            return "interrupted; nothing was left behind", INTERRUPTED
    known = _translated(error)
    if isinstance(error, FastWanError) and "std::bad_alloc" not in error.what:
        known = error
    if known is not None:
        return str(known), known.exit_code
    kind, text = type(error).__name__, " ".join(str(error).split())[:300]
    return f"unexpected {kind}: {text}: run again with --debug", UNEXPECTED


def _translated(error: BaseException) -> FastWanError | None:
    """An error of Python or of a library in this tool's words; None for one that tells of a bug."""
    if _lacks_memory(error):
        return EnvironmentLacks(
            "not enough memory", fix="free some, or raise the limit of address space (ulimit -v)"
        )
    if isinstance(error, ModuleNotFoundError):
        return EnvironmentLacks(
            f"the Python package {error.name!r} is missing",
            fix=how_to_install(extra_of(error.name or "")),
        )
    if isinstance(error, OSError):
        return _of_system(error)
    return None


def _of_system(error: OSError) -> FastWanError:
    what = error.strerror or str(error)
    if error.errno == errno.ENOENT and "temporary directory" in what:
        return EnvironmentLacks(
            "no folder for temporary files can be written",
            fix="set TMPDIR to one, or free some space",
        )
    where = str(error.filename or "")
    if error.errno in _MACHINE:
        return EnvironmentLacks(what, where=where)
    return BadInput(what, where=where)


def _lacks_memory(error: BaseException) -> bool:
    return any(
        isinstance(each, MemoryError)
        or (isinstance(each, OSError) and each.errno == errno.ENOMEM)
        or _MEMORY.search(str(each)) is not None
        # An extension module forgets to say so where it cannot even make the exception.
        or (isinstance(each, SystemError) and "exception set" in str(each))
        for each in _chain(error)
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised for."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def require_address_space(work: Literal["build", "play", "serve"] = "build") -> None:
    """Refuse to load libraries that abort the process where they cannot be mapped.

    Args:
        work: what is loaded: torch and the builder, what plays a video, or a server that does.

    Raises:
        EnvironmentLacks: the limit of address space is below what they map.
    """
    if sys.platform == "win32":
        return
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    needed = ADDRESS_SPACE[work]
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise EnvironmentLacks(
            f"not enough memory: {limit / 1e9:.1f} GB of address space, and the libraries alone "
            f"map {needed / 1e9:.1f} GB",
            fix="raise the limit (ulimit -v)",
        )


def fail(line: str, code: int) -> NoReturn:
    """End the command, with what `explain` gives."""
    if line:
        try:
            say(f"error: {line}")
        except MemoryError:
            # Not even a string can be made, and what runs at exit would fail and tell of it.
            os.write(2, _NO_MEMORY)
            os._exit(EnvironmentLacks.exit_code)
    sys.exit(code)


_ANYWHERE = frozenset({"--debug", "-q", "--quiet", "-v", "--verbose"})
"""Options of the whole command line that need not stand before the command."""

_WHOLE = 1000
"""Characters of a command's summary, which none has."""

ADDRESS_SPACE = {"build": 2_000_000_000, "play": 600_000_000, "serve": 900_000_000}
"""Bytes by kind of work. Measured for the smallest model on two cores: 1.4 to 1.8, 0.54 and 0.8 GB;
with less, libraries end the process or call what they cannot map missing."""

_NO_MEMORY = (
    b"error: not enough memory: free some, or raise the limit of address space (ulimit -v)\n"
)


class OneLineGroup(click.Group):
    """Says what is wrong with the words of a command in one line, like every other error."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with the whole first sentence of each."""
        rows = []
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None:
                rows.append((name, command.get_short_help_str(_WHOLE)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        prepare_streams()
        given = args[0] if args else kwargs.pop("args", None)
        words = list(sys.argv[1:] if given is None else given)
        end = words.index("--") if "--" in words else len(words)
        first = [word for word in words[:end] if word in _ANYWHERE]
        words = [*first, *(w for w in words[:end] if w not in _ANYWHERE), *words[end:]]
        stdout = sys.stdout
        try:
            code = super().main(words, **{**kwargs, "standalone_mode": False})
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            code = error.exit_code
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            tip = f": see {context.command_path} --help" if context else ""
            fail(f"{error.format_message().rstrip('.')}{tip}", error.exit_code)
        except (click.Abort, OSError) as error:
            fail(*explain(error))
        except SystemExit as stop:
            if stop.code == 1 and sys.stdout is not stdout:  # so click tells that a pipe broke
                sys.exit(READER_GONE)
            raise
        sys.exit(code)
