"""Every table on terminals of several widths and in a pipe: no word of it is cut."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import RenderableType
from rich.text import Text

from fastwan import doctor
from fastwan.bundle import open_bundle
from fastwan.config import VideoShape
from fastwan.console import print_rich
from fastwan.doctor import Finding
from fastwan.quality.compare import text as compare_text
from fastwan.quality.compare.run import compare_bundles
from fastwan.quality.plan_text import PlanText
from fastwan.quality.report import inspect_bundle
from fastwan.quality.report_text import render as inspect_text
from fastwan.quality.verify import report as verify_report
from fastwan.quality.verify.report import Check, VerifyReport
from fastwan.quality.video_plan import PlanSpec, plan_shapes
from fastwan.screen import Grid, Lines

WIDTHS = (40, 50, 80, 120, 200)
TABLES = ("inspect", "compare", "plan", "plan of one target", "doctor", "verify")


@pytest.fixture(scope="module")
def tables(lifted_bundle: Path, tiny_bundle: Path) -> dict[str, RenderableType]:
    """What the commands with tables print."""
    shapes = (VideoShape(height=480, width=832, num_frames=81),)
    compared = compare_bundles(tiny_bundle, lifted_bundle, static=True).report
    assert compared.static.groups
    checks = tuple(
        Check(name=f"quantizer_bit_exact_{n}", metric="values", value=n, limit=0, note="in block 1")
        for n in range(3)
    )
    verified = VerifyReport.model_construct(checks=checks, fp4=None, lora=(), unchecked=("frames",))
    findings = [
        Finding("package", "torch", "missing", "not installed", "pip install '.[build]'"),
        Finding("ability", "make a video on the CPU", "ok", "the reference: slow, small"),
    ]
    return {
        "inspect": inspect_text(inspect_bundle(open_bundle(lifted_bundle))),
        "compare": compare_text.render(compared),
        "plan": PlanText(plan_shapes(PlanSpec(shapes=shapes))),
        "plan of one target": PlanText(plan_shapes(PlanSpec(shapes=shapes, targets=("rtx5090",)))),
        "doctor": doctor.render(findings),
        "verify": verify_report.render(verified),
    }


def on_terminal(width: int, show: Callable[[], None]) -> str:
    """What a terminal of some columns is shown."""
    child, terminal = pty.fork()
    if child == 0:
        code = 1
        try:
            os.environ.pop("COLUMNS", None)
            fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
            show()
            sys.stdout.flush()
            code = 0
        finally:
            os._exit(code)
    shown = b""
    while True:
        try:
            part = os.read(terminal, 1 << 16)
        except OSError:  # Linux says so when the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, shown.decode()
    return re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).replace("\r\n", "\n")


@pytest.fixture
def piped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[RenderableType], str]:
    """What is written to a pipe of something printable."""
    monkeypatch.delenv("COLUMNS", raising=False)

    def shown(content: RenderableType) -> str:
        print_rich(content)
        return capsys.readouterr().out

    return shown


def words(text: str) -> set[str]:
    return {word for word in re.split(r"[\s():;,\u2500-\u257f]+", text) if word}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", TABLES)
def test_a_terminal_shows_every_word_of_the_pipe(
    name: str,
    width: int,
    tables: dict[str, RenderableType],
    piped: Callable[[RenderableType], str],
) -> None:
    shown = on_terminal(width, lambda: print_rich(tables[name]))
    assert max(map(len, shown.splitlines())) <= width
    assert "\u2026" not in shown
    wanted = {word for word in words(piped(tables[name])) if len(word) < width - 2}
    wanted -= {"of", "at", "most"}  # what a line of verify has between its cells
    assert len(wanted) > 10
    assert wanted - words(shown) == set()


@pytest.mark.parametrize("name", TABLES)
def test_a_pipe_has_a_line_a_row_and_nothing_else(
    name: str, tables: dict[str, RenderableType], piped: Callable[[RenderableType], str]
) -> None:
    lines = piped(tables[name]).splitlines()
    assert len(lines) > 2
    assert not [line for line in lines if not line.strip() or line != line.strip()]
    assert not re.search("[\u2500-\u257f\x1b]", "".join(lines))
    if name == "inspect":
        (kinds,) = (line for line in lines if line.startswith("kernels, by kind: "))
        assert re.search(r"[:;] dit (\w+:\d+ )+", f"{kinds} ")
        assert kinds.endswith(" (measured)")
    if name == "plan":
        (row,) = (line for line in lines if line.startswith("shape 832x480x81: "))
        assert re.search(r"; rtx5090 [\d.]+-[\d.]+ s; ", row)


GRID = Grid(
    ("", "name (what)", "size\nMB", ""),
    [("all", "word " * 5, "1", "measured"), ("  of them", "a-long-name", "", "")],
    title="table",
    labelled=True,
)


@pytest.mark.parametrize(("width", "table"), [(200, True), (45, True), (38, False), (22, False)])
def test_a_table_is_one_where_every_word_has_room(width: int, table: bool) -> None:
    shown = on_terminal(width, lambda: print_rich(GRID))
    assert ("\u2503" in shown) is table
    assert "a-long-name" in shown
    assert max(map(len, shown.splitlines())) <= width


def test_a_row_as_a_line(piped: Callable[[RenderableType], str]) -> None:
    assert piped(GRID).splitlines() == [
        "table:",
        "all: name word word word word word ; size 1 MB (measured)",
        "all, of them: name a-long-name",
    ]
    grid = Grid(("step", "seed", "drift"), [("0", "7", "0.1")], names=2)
    assert piped(grid) == "step 0 seed 7: drift 0.1\n"


def test_a_folded_line_goes_on_indented() -> None:
    shown = on_terminal(30, lambda: print_rich(Lines("a line [red] that is longer than that is")))
    assert shown.splitlines() == ["a line [red] that is longer", "  than that is"]
    assert str(Text("a")) == "a"
