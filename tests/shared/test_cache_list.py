"""The command cache: entries are listed, removed by key, age and size, and held to their hashes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fastwan.cache_entry import RECORD
from fastwan.cache_list import DAY
from fastwan.cli import main
from fastwan.content_cache import ContentCache

KEYS = {name: name * 64 for name in "abc"}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of three entries, which were used ten, five and no days ago."""
    monkeypatch.setenv("FASTWAN_CACHE_DIR", str(tmp_path))
    for name, kind, days in (("a", "exports", 10), ("b", "engines", 5), ("c", "exports", 0)):
        ContentCache(kind).put(KEYS[name], {"file": bytes(10_000)}, {})  # type: ignore[arg-type]
        used = time.time() - days * DAY
        os.utime(tmp_path / kind / KEYS[name] / RECORD, (used, used))
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["cache", *words])


def listed() -> list[str]:
    """Keys of all entries by one letter, the one that was used last first."""
    return [each["key"][0] for each in told("ls")["entries"]]


def told(*words: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(run(*words, "--json").stdout)
    return report


def test_entries_are_listed(root: Path) -> None:
    assert listed() == ["c", "b", "a"]
    report = told("ls")
    assert report["bytes"] == sum(each["bytes"] for each in report["entries"]) > 30_000
    *lines, last = run("ls").stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["c" * 12, "exports"], ["b" * 12, "engines"], ["a" * 12, "exports"],
    ]  # fmt: skip
    assert last.endswith(f"in {root}")


@pytest.mark.usefixtures("root")
def test_an_entry_is_removed_by_the_beginning_of_its_key() -> None:
    assert run("rm", "bbb").exit_code == 2
    assert run("rm", "ffff").exit_code == 2
    assert listed() == ["c", "b", "a"]
    done = run("rm", "bbbb")
    assert done.exit_code == 0
    assert "1 removed" in done.stdout
    assert listed() == ["c", "a"]


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(
    ("words", "left"),
    [
        ([], "cba"), (["--days", "20"], "cba"), (["--days", "7"], "cb"), (["--days", "2"], "c"),
        (["--max-bytes", "25000"], "cb"), (["--max-bytes", "0"], ""),
        (["--days", "7", "--max-bytes", "15000"], "c"),
    ],
)  # fmt: skip
def test_what_was_used_longest_ago_is_pruned(words: list[str], left: str) -> None:
    assert run("prune", *words).exit_code == 0
    assert "".join(listed()) == left


def test_a_damaged_entry_is_found_and_removed(root: Path) -> None:
    assert run("verify").exit_code == 0
    (root / "exports" / KEYS["a"] / "file").write_bytes(bytes(9_999) + b"x")
    report = told("verify")
    assert [(each["key"], each["removed"]) for each in report["entries"]] == [(KEYS["a"], True)]
    assert listed() == ["c", "b"]
    (root / "engines" / KEYS["b"] / "file").unlink()
    assert run("verify").exit_code == 4


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("words", [["ls", "aaaa"], ["rm"], ["ls", "--days", "1"]])
def test_words_of_another_action_are_refused(words: list[str]) -> None:
    assert run(*words).exit_code == 2


def test_a_cache_that_is_not_there_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTWAN_CACHE_DIR", str(tmp_path / "none"))
    assert listed() == []
    assert not (tmp_path / "none").exists()
