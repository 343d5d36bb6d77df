"""The commands of the pages, run for real in one folder, and what the pages show of it.

A block of shell is run line by line. `<!-- not run: why -->` before it leaves it out, and
`<!-- exits with N -->` says what its last line exits with. A block of Python or YAML is the file of
its title. A block of text is output: each of its lines has to be printed by a command before it,
but for numbers with a decimal point, which differ from run to run and between processors.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.trt

# The tutorial first: what README shows of it has been run by then.
PAGES = ("docs/tutorial.md", "docs/ci.md", "README.md")
BLOCK = re.compile(
    r'(?:^<!-- (?P<note>[^\n]*) -->\n)?^```(?P<kind>\w*)(?: title="(?P<title>[\w./-]+)")?\n'
    r"(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
FILES = ("python", "yaml")
"""Kinds of blocks that are files."""
NOT_RUN = re.compile(r"not run: \w.*")
EXITS = re.compile(r"exits with (\d+)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page and the comment before it."""

    kind: str
    body: str
    note: str = ""
    title: str = ""

    @property
    def lines(self) -> list[str]:
        return self.body.replace("\\\n", " ").splitlines()

    @property
    def skipped(self) -> bool:
        return bool(NOT_RUN.fullmatch(self.note))

    @property
    def exit_code(self) -> int:
        """What the last line exits with; the others exit with 0."""
        found = EXITS.fullmatch(self.note)
        return int(found[1]) if found else 0


def blocks(page: str) -> list[Block]:
    """All fenced blocks of a page.

    Raises:
        ValueError: a fence, a kind, a comment or a title that says nothing to this test.
    """
    found = [
        Block(each["kind"], each["body"], each["note"] or "", each["title"] or "")
        for each in BLOCK.finditer(page)
    ]
    if 2 * len(found) != len(re.findall(r"^[ \t]*```", page, re.MULTILINE)):
        raise ValueError("a fence is not the beginning or the end of a block")
    for block in found:
        if block.kind not in ("bash", "python", "text", "yaml"):
            raise ValueError(f"a block of kind {block.kind!r}")
        if block.note and not (NOT_RUN.fullmatch(block.note) or EXITS.fullmatch(block.note)):
            raise ValueError(f"comment {block.note!r} before a block")
        if bool(block.title) != (block.kind in FILES):
            raise ValueError("every block of Python or YAML has a title, and no other")
    return found


def cells(line: str) -> list[str]:
    """A line of output as its cells, without frames and numbers with a decimal point."""
    plain = re.sub(r"\d[\d,]*\.\d+(?:e-?\d+)?", "#", re.sub("[\u2500-\u257f]", "|", line))
    return [" ".join(cell.split()) for cell in plain.split("|") if cell.strip()]


def shown(line: str, output: Sequence[str]) -> bool:
    """Whether a line of a page was printed; a row of a table may lack its last cells."""
    wanted = cells(line)
    return any(cells(each)[: len(wanted)] == wanted for each in output)


class Scratch:
    """A folder in which commands are run one after the other."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder = folder
        self.output: list[str] = []
        self.ran: dict[str, int] = {}
        self._environment = {
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "FASTWAN_CACHE_DIR": str(cache),
            "FASTWAN_QUIET": "1",
            "OMP_NUM_THREADS": "1",  # threads that wait for each other spin
            "COLUMNS": "240",
        }

    def run(self, line: str) -> int:
        """Exit code of a line; one that was run before is not run again."""
        if line not in self.ran:
            done = subprocess.run(
                ["bash", "-c", line], cwd=self.folder, env=self._environment,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
            self.output += done.stdout.splitlines()
            self.ran[line] = done.returncode
        return self.ran[line]

    def play(self, page: str) -> None:
        """Write, run and compare every block of a page in order."""
        for block in blocks(page):
            if block.kind in FILES:
                file = self.folder / block.title
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(block.body)
            elif block.kind == "text":
                for line in block.lines:
                    assert shown(line, self.output), f"never printed: {line}"
            elif not block.skipped:
                for number, line in enumerate(block.lines, 1):
                    expected = block.exit_code if number == len(block.lines) else 0
                    code = self.run(line)
                    tail = "\n".join(self.output[-20:])
                    assert code == expected, f"{line} exits with {code}\n{tail}"


def test_the_commands_of_the_pages_run(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    (tmp_path / "scratch").mkdir()
    scratch = Scratch(tmp_path / "scratch", tmp_path / "cache")
    pages = [(root / page).read_text() for page in PAGES]
    for page in pages:
        scratch.play(page)
    assert (scratch.folder / "fox.mp4").is_file()
    assert (scratch.folder / "frames" / "frame_0000.png").is_file()
    assert not (scratch.folder / "broken").exists()
    # Every program that a page writes is run, and both ways to exit code 4 were gone.
    found = [block for page in pages for block in blocks(page)]
    titles = [block.title for block in found if block.kind == "python"]
    assert titles
    assert {f"python {title}" for title in titles} <= scratch.ran.keys()
    assert list(scratch.ran.values()).count(4) == 2
    # README's table is the real one, to the digit.
    table = pages[-1].partition("| | text_encoder | dit | decoder | |\n")[2].split("\n\n")[0]
    rows = [re.split(r"\s*\|\s*", row.strip("| ")) for row in table.splitlines()[1:]]
    printed = [[c.strip() for c in line.strip("│ ").split("│")] for line in scratch.output]
    assert len(rows) == 5
    assert [row for row in rows if row not in printed] == []


@pytest.mark.parametrize("name", PAGES)
def test_every_block_that_is_not_run_says_why(name: str, root: Path) -> None:
    found = [block for block in blocks((root / name).read_text()) if block.kind == "bash"]
    reasons = [block.note.removeprefix("not run: ") for block in found if block.skipped]
    assert len(reasons) < len(found)
    assert all(re.match(r"(needs|full size|tests/|the tests) ?", reason) for reason in reasons)


@pytest.mark.parametrize(
    ("page", "what"),
    [
        ("```bash\ntrue\n", "a fence"),
        ("```\ntrue\n```\n", "kind"),
        ("<!-- skipped -->\n```bash\nfalse\n```\n", "comment"),
        ("<!-- not run: -->\n```bash\nfalse\n```\n", "comment"),
        ("```python\npass\n```\n", "title"),
    ],
    ids=["fence", "kind", "comment", "reason", "title"],
)
def test_a_block_that_would_slip_through_is_refused(page: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        blocks(page)


@pytest.mark.parametrize(
    ("good", "bad", "what"),
    [
        ("```bash\ntrue\n```\n", "```bash\nfalse\n```\n", "false exits with 1"),
        ("```bash\ntrue\n```\n", "```bash\nfalse\ntrue\n```\n", "false exits with 1"),
        (
            "<!-- exits with 4 -->\n```bash\ntrue\nexit 4\n```\n",
            "<!-- exits with 4 -->\n```bash\ntrue\nexit 0\n```\n",
            "exit 0 exits with 0",
        ),
        (
            "```bash\necho '│ kernels │ 3 │ 1.5 MB │'\n```\n```text\n│ kernels │ 3 │ 2.5 MB\n```\n",
            "```bash\necho '│ kernels │ 3 │ 1.5 MB │'\n```\n```text\n│ kernels │ 4 │ 2.5 MB\n```\n",
            "never printed: │ kernels │ 4",
        ),
        (
            '```python title="a.py"\npass\n```\n```bash\npython a.py\n```\n',
            '```python title="b.py"\npass\n```\n```bash\npython a.py\n```\n',
            "python a.py exits with 2",
        ),
    ],
    ids=["last line", "first line", "exit code", "output", "file"],
)
def test_a_page_that_does_not_hold_is_seen(tmp_path: Path, good: str, bad: str, what: str) -> None:
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
    Scratch(tmp_path / "good", tmp_path).play(good)
    with pytest.raises(AssertionError, match=re.escape(what)):
        Scratch(tmp_path / "bad", tmp_path).play(bad)
