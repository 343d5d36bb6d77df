"""The command line in processes of its own, with streams and surroundings that fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastwan.failures import ADDRESS_SPACE

if sys.platform == "win32":
    pytest.skip("the shell's redirections", allow_module_level=True)

COMMAND = f"'{sys.executable}' -m fastwan.cli"


def shell(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a line in bash; the exit code is that of the first command of its pipe."""
    return subprocess.run(
        ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"],
        env={**os.environ, **variables},
        capture_output=True,
        encoding="utf-8",
    )


@pytest.mark.parametrize(
    ("redirected", "code", "message"),
    [
        ("", 0, ""),
        ("| true", 141, ""),
        ("| cat", 0, ""),
        (">&-", 3, "error: stdout is closed: "),
        (">/dev/null", 0, ""),
        (">/dev/full", 3, "error: the result cannot be written: No space left on device"),
        ("<&- 2>&-", 0, ""),
        ("2>/dev/full", 0, ""),
    ],
)
def test_streams_that_fail(tiny_bundle: Path, redirected: str, code: int, message: str) -> None:
    done = shell(f"{COMMAND} inspect '{tiny_bundle}' --json {redirected}")
    assert done.returncode == code
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == bool(message)
    if not code and ">/dev/null" not in redirected:
        assert json.loads(done.stdout)["kind"] == "inspect"


def test_the_reader_of_the_help_may_go_away() -> None:
    done = shell(f"{COMMAND} --help | true")
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_tables_fit_every_encoding(tiny_bundle: Path, encoding: str) -> None:
    command = [sys.executable, "-m", "fastwan.cli", "inspect", str(tiny_bundle)]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert ("┏" in done.stdout.decode(encoding)) == (encoding == "utf-8")


NO_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("variables", [NO_LOCALE, {}])
def test_a_prompt_is_the_same_in_every_locale(
    tiny_bundle: Path, tmp_path: Path, variables: dict[str, str]
) -> None:
    output = tmp_path / "видео" / "лиса 🦊.mp4"
    line = f"{COMMAND} generate '{tiny_bundle}' 'лиса 🦊' -o '{output}' --device cpu --json"
    done = shell(line, **variables)
    assert done.returncode == 0, done.stderr
    assert output.is_file()
    (video,) = json.loads(done.stdout)["videos"]
    assert video["prompt"] == "лиса 🦊"


@pytest.mark.parametrize("share", [0.5, 0.97])
@pytest.mark.parametrize(
    ("command", "work"),
    [
        ("generate '{bundle}' fox -o '{output}' --device cpu", "play"),
        ("serve '{bundle}' --folder '{output}' --device cpu", "serve"),
        ("verify '{bundle}'", "build"),
        ("make-checkpoint '{output}' --size tiny", "build"),
        ("build-engine --checkpoint '{bundle}' -o '{output}'", "build"),
    ],
)
def test_too_little_address_space_is_one_line(
    tiny_bundle: Path, tmp_path: Path, command: str, work: str, share: float
) -> None:
    """Libraries end the process with a signal where they cannot be mapped."""
    output = tmp_path / "fox.mp4"
    line = command.format(bundle=tiny_bundle, output=output)
    done = shell(f"ulimit -v {int(share * ADDRESS_SPACE[work]) >> 10}; {COMMAND} {line}")
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith("error: not enough memory")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kilobytes", [6_000_000, None])
def test_enough_address_space_makes_the_video(
    tiny_bundle: Path, tmp_path: Path, kilobytes: int | None
) -> None:
    output = tmp_path / "fox.mp4"
    limit = "" if kilobytes is None else f"ulimit -v {kilobytes}; "
    done = shell(f"{limit}{COMMAND} generate '{tiny_bundle}' fox -o '{output}' --device cpu")
    assert done.returncode == 0, done.stderr
    assert output.is_file()
