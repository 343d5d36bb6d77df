"""Every row of the tables of faults, and its twin without the fault.

A fault is refused in one line with its documented exit code, and nothing of the user's changes; or
the command gets over it and makes the same as without.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path

import pytest

from testkit.fault_tables import FAULTS
from testkit.faults import KINDS, Fault, Runner, snapshot
from testkit.once import Once

pytestmark = pytest.mark.trt

CALLS = {"B", "F"}
"""Kinds that are of calls, not commands; see `test_faults_calls`."""

DOCUMENTED = {0, 2, 3, 4, 5, 141}


@pytest.fixture
def run(
    tiny_checkpoint: Path,
    tiny_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Runner:
    return Runner(tiny_checkpoint, tiny_bundle, monkeypatch, capsys)


@pytest.fixture(scope="session")
def warm(once: Once) -> Path:
    """A cache that all rows share."""
    return once("faults-cache", Path.mkdir)


def prepared(run: Runner, row: Fault, folder: Path) -> Path:
    folder.mkdir()
    run.fill(folder, row.command)
    row.before(folder)
    return folder


def twin_works(run: Runner, once: Once, warm: Path, row: Fault) -> str:
    """Run a row's command without its fault, once for all rows; what it said where it failed."""

    def make(folder: Path) -> None:
        outcome = run(prepared(run, row, folder), row, row.twin_command, warm)
        (folder / "said").write_text(outcome.err if outcome.code else "")

    what = f"{row.twin_command} {row.before.__module__}.{row.before.__qualname__}"
    digest = hashlib.sha256(what.encode()).hexdigest()[:16]
    return (once(f"twin-{digest}", make) / "said").read_text()


@pytest.mark.parametrize("row", FAULTS, ids=lambda row: row.name)
def test_a_fault_is_refused_or_survived(
    run: Runner, once: Once, warm: Path, tmp_path: Path, row: Fault
) -> None:
    assert twin_works(run, once, warm, row) == ""
    folder = prepared(run, row, tmp_path / "fault")
    row.plant(folder)
    before = snapshot(folder)
    outcome = run(folder, row, row.command, warm)
    assert "Traceback" not in outcome.err
    assert outcome.code == row.code, outcome.err
    lines = outcome.err.splitlines()
    if row.code not in (0, 141):
        assert bool(outcome.out) == bool(row.tells)
        assert lines[-1].startswith("error: ")
        assert snapshot(folder) == before
    assert len(lines) == bool(row.words), outcome.err
    assert re.search(row.words, "".join(lines))
    assert re.search(row.tells, outcome.out)
    row.check(folder)


def test_the_tables_are_whole() -> None:
    assert len(FAULTS) >= 100
    names = Counter(row.name for row in FAULTS)
    assert [name for name, count in names.items() if count > 1] == []
    assert {row.kind for row in FAULTS} >= set(KINDS) - CALLS
    for row in FAULTS:
        assert row.differs, row.name
        assert row.code in DOCUMENTED, row.name
        assert row.words or row.code in (0, 141), row.name
