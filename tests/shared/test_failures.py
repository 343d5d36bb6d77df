"""What ended a command: its line and its exit code."""

from __future__ import annotations

import errno
import os
import signal

import pytest
from click.testing import CliRunner

from fastwan.cli import main
from fastwan.console import ReaderGone
from fastwan.errors import BadInput, EnvironmentLacks, VerificationFailed
from fastwan.failures import explain
from fastwan.signals import Terminated


def system(number: int, path: str | None = "/x") -> OSError:
    return OSError(number, os.strerror(number), path)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (BadInput("broken", where="x", fix="mend"), 2, "broken (x): mend"),
        (EnvironmentLacks("no GPU"), 3, "no GPU"),
        (VerificationFailed("differs"), 4, "differs"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Terminated(signal.SIGTERM), 143, "ended by SIGTERM"),
        (ReaderGone(), 141, ""),
        (system(errno.ENOENT), 2, "No such file or directory (/x)"),
        (system(errno.EACCES), 2, "Permission denied (/x)"),
        (system(errno.ENOSPC), 3, "No space left on device (/x)"),
        (system(errno.EROFS, None), 3, "Read-only file system"),
        (system(errno.EMFILE), 3, "Too many open files (/x)"),
        (system(errno.ENOMEM), 3, "not enough memory"),
        (FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"), 3, "TMPDIR"),
        (MemoryError(), 3, "not enough memory"),
        (RuntimeError("std::bad_alloc"), 3, "not enough memory"),
        (SystemError("error return without exception set"), 3, "not enough memory"),
        (BadInput("the graph does not load: std::bad_alloc"), 3, "not enough memory"),
        (RuntimeError("can't start new thread"), 3, "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 3, "not enough memory"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), 3, "ulimit"),
        (RuntimeError("a bug"), 1, "unexpected RuntimeError: a bug: run again with --debug"),
        (ImportError("cannot import name 'x'"), 1, "unexpected ImportError"),
        (ModuleNotFoundError("", name="av"), 3, "'av' is missing: pip install -c"),
        (ModuleNotFoundError("", name="cuda.bindings"), 3, "[gpu]"),
        (ModuleNotFoundError("", name="diffusers"), 3, "[dev]"),
    ],
)
def test_every_failure_has_a_line_and_a_code(error: BaseException, code: int, words: str) -> None:
    line, found = explain(error)
    assert found == code
    assert words in line
    assert bool(line) == bool(words)
    assert "\n" not in line


@pytest.mark.parametrize("cause", [MemoryError(), ValueError("x")])
def test_what_memory_ran_out_under_is_told(cause: Exception) -> None:
    error = RuntimeError("the graph could not be read")
    error.__cause__ = cause
    assert explain(error)[1] == (3 if isinstance(cause, MemoryError) else 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nosuch"], "No such command 'nosuch': see main --help"),
        (["inspect"], "Missing argument 'BUNDLE': see main inspect --help"),
        (["inspect", "x", "y\x1b[31m\nz"], r"y\x1b[31m z"),
        (["bench", "x", "--runs", "1e9"], "'1e9' is not a valid integer"),
    ],
)
def test_words_that_are_no_command_are_one_line(words: list[str], message: str) -> None:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert result.stdout == ""


@pytest.mark.parametrize("words", [["--help"], ["inspect", "--help"], ["--version"]])
def test_help_is_a_result(words: list[str]) -> None:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0
    assert result.stdout
    assert result.stderr == ""
