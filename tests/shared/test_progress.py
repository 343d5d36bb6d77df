"""Progress: what stands in a log, and what a terminal is left with."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from fastwan.cli import main
from fastwan.commands import running
from fastwan.errors import BadInput
from fastwan.progress import Console, Quiet, stage

SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")


def run(console: Console) -> None:
    with stage(console, "build dit", 3, "engines"):
        for name in ("a [red]", "b", "c"):
            console.advance(1, name)
    with stage(console, "hash", 5_000_000, "bytes"):
        console.advance(5_000_000)
    with stage(console, "trace"):
        pass
    console.start("bench")
    console.finish("of 2 videos")


def without_times(text: str) -> str:
    return re.sub(r"\d+\.\d s", "0.0 s", text)


LINES = [
    "build dit: 3 engines in 0.0 s",
    "hash: 5 MB in 0.0 s",
    "trace: in 0.0 s",
    "bench: in 0.0 s of 2 videos",
]


def test_a_log_has_one_line_a_stage_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    run(Console())
    assert without_times(capsys.readouterr().err).splitlines() == LINES


def test_a_terminal_has_the_same_lines_and_bars_that_are_gone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(Console(live=True))
    text = capsys.readouterr().err
    assert "1/3" in text or "3/3" in text
    assert text.count(HIDE_CURSOR) == text.count(SHOW_CURSOR) == len(LINES)
    left = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", without_times(text))
    for line in LINES:
        assert line in left


def test_a_failed_stage_leaves_the_cursor_and_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(live=True)
    with pytest.raises(BadInput), stage(console, "build", 2, "engines"):
        raise BadInput("broken")
    console.stop()
    console.stop()
    text = capsys.readouterr().err
    assert text.count(HIDE_CURSOR) == text.count(SHOW_CURSOR) == 1
    assert "in 0.0 s" not in without_times(text)


def test_a_new_stage_ends_one_that_was_abandoned(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(live=True)
    console.start("first", 2, "steps")
    console.start("second", 2, "steps")
    console.advance()
    console.finish()
    text = capsys.readouterr().err
    assert text.count(HIDE_CURSOR) == text.count(SHOW_CURSOR) == 2


@pytest.mark.parametrize("fails", [True, False])
def test_the_command_line_takes_the_bar_away_before_its_error(
    monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    monkeypatch.setattr(running, "Console", lambda verbose: Console(live=True, verbose=verbose))
    monkeypatch.setattr(running.State, "display", None)

    def make(*_: object, progress: Console, **__: object) -> SimpleNamespace:
        progress.start("write", 2, "files")
        if fails:
            raise BadInput("broken")
        progress.finish()
        return SimpleNamespace(parameters=1, bytes=1)

    monkeypatch.setattr("fastwan.export.checkpoint.synthetic.make_checkpoint", make)
    result = CliRunner().invoke(main, ["make-checkpoint", "--size", "tiny", "out"])
    assert result.exit_code == (2 if fails else 0)
    assert result.stderr.count(HIDE_CURSOR) == result.stderr.count(SHOW_CURSOR) == 1
    *_, last = result.stderr.splitlines()
    if fails:
        assert last.endswith("error: broken")
        assert result.stderr.index(SHOW_CURSOR) < result.stderr.index("error: broken")
    else:
        assert without_times(last).endswith("write: in 0.0 s")


def test_what_a_stage_prints_stays_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with stage(Console(live=True), "export", 1, "graphs"):
        print("a library's greeting")
        print("a library's warning", file=sys.stderr)
    out, err = capsys.readouterr()
    assert out == "a library's greeting\n"
    assert "a library's warning" in err


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with stage(Quiet(), "build", 3, "engines") as progress:
        progress.advance(1, "a")
    assert capsys.readouterr().err == ""
