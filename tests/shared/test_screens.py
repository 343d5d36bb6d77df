"""What is shown on screens of every width, in files and in pipes."""

from __future__ import annotations

import io

import pytest
from click.testing import CliRunner
from rich.console import Console as Terminal

from fastwan import progress
from fastwan.cli import main
from fastwan.commands.running import State, shown_progress
from fastwan.console import WIDE, Look, print_rich
from fastwan.doctor import Finding
from fastwan.doctor import render as doctor_text
from fastwan.progress import Console, Quiet, stage
from fastwan.quality.verify.report import Check, VerifyReport
from fastwan.quality.verify.report import render as verify_text

NAME = "quantizer_bit_exact_of_every_block"
REPORT = VerifyReport.model_construct(
    checks=(
        Check(name=NAME, metric="values that differ", value=0.0, limit=0.0, note="16 quantisers"),
        Check(name="decoder", metric="relative L2", value=2.0, limit=1.0, note="[red]"),
    ),
    fp4=None, lora=(), unchecked=(),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for holder, name in ((State, "quiet"), (State, "verbose"), (Look, "color")):
        monkeypatch.setattr(holder, name, getattr(holder, name))


@pytest.mark.parametrize("width", [40, 50, 80, WIDE - 1, WIDE, 160, 200])
def test_no_name_is_cut(width: int) -> None:
    shown = io.StringIO()
    Terminal(file=shown, width=width, force_terminal=True, color_system=None).print(
        verify_text(REPORT)
    )
    text = shown.getvalue()
    assert NAME in text
    assert "\u2026" not in text
    assert max(map(len, text.splitlines())) <= width
    assert ("\u2503" in text) is (width >= WIDE)


def test_a_pipe_has_a_line_for_each_check(capsys: pytest.CaptureFixture[str]) -> None:
    print_rich(verify_text(REPORT))
    assert capsys.readouterr().out.splitlines() == [
        f"passed {NAME}: 0 of at most 0, values that differ (16 quantisers)",
        "FAILED decoder: 2 of at most 1, relative L2 ([red])",
        "failed: decoder",
    ]
    long = Finding("ability", "make a video", "missing", "without " + "x" * 300, "mend " + "y" * 90)
    print_rich(doctor_text([long]))
    _, line = capsys.readouterr().out.splitlines()
    assert line == f"missing make a video: {long.detail} -> {long.fix}"


@pytest.mark.parametrize(("color", "colours"), [("auto", False), ("always", True)])
def test_a_pipe_has_colours_when_asked_for(
    capsys: pytest.CaptureFixture[str], color: str, colours: bool
) -> None:
    Look.color = color  # type: ignore[assignment]
    print_rich(verify_text(REPORT))
    assert ("\x1b[" in capsys.readouterr().out) is colours


@pytest.mark.parametrize("words", [["-q", "plan"], ["plan", "-q"], ["plan", "--quiet"], ["plan"]])
def test_quiet_may_stand_anywhere(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTWAN_QUIET", raising=False)
    done = CliRunner().invoke(main, [*words, "--shape", "832x480x1", "--target", "5090", "--json"])
    assert done.exit_code == 0
    assert State.quiet is (words != ["plan"])
    assert isinstance(shown_progress(), Quiet) is State.quiet


def run(console: Console) -> None:
    with stage(console, "build", 2, "engines"):
        console.advance(1, "a")
        console.advance(1, "b")


@pytest.mark.parametrize("verbose", [True, False])
def test_verbose_tells_each_part(verbose: bool, capsys: pytest.CaptureFixture[str]) -> None:
    run(Console(live=False, verbose=verbose))
    *parts, last = capsys.readouterr().err.splitlines()
    assert parts == (["build: a", "build: b"] if verbose else [])
    assert last.startswith("build: 2 engines in ")


@pytest.mark.parametrize("ci", ["", "true"])
def test_a_log_of_ci_has_lines_alone(
    ci: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("CI", ci)
    run(Console())
    assert ("\x1b" in capsys.readouterr().err) is (not ci)


@pytest.mark.parametrize("width", [40, 50, 80, 160])
def test_progress_fits_into_its_pane(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A longer line would be drawn again below itself at every turn."""
    monkeypatch.setenv("COLUMNS", str(width))
    console, shown = Console(live=True), io.StringIO()
    with stage(console, "quantise transformer", 5_000_000_000, "bytes"):
        console.advance(1_000_000_000, "tensors of 1/30: " + "n" * 60)
        assert console._display is not None
        Terminal(file=shown, width=width).print(console._display.get_renderable())
    (line,) = shown.getvalue().splitlines()
    assert "quantise" in line
    assert "0:00:0" in line
