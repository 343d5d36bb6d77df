"""README and the map of the source say what is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from fastwan import __version__, errors
from fastwan.cli import main

STAGES = ("export", "engines", "runtime", "plugins")
FENCE = re.compile(r"^```(?:bash|console|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PATH = re.compile(r"`((?:export|engines|runtime|plugins|src|scripts|docs|tests|\.ci)/[\w./*-]*)`")


@pytest.fixture(scope="session")
def readme(root: Path) -> str:
    return (root / "README.md").read_text()


@pytest.fixture(scope="session")
def structure(root: Path) -> str:
    return (root / "docs" / "structure.md").read_text()


def commands(text: str) -> list[list[str]]:
    """Words of every `fastwan-export` line in the shell blocks of a page."""
    found = []
    for block in FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "fastwan-export" in words:
                found.append(words[words.index("fastwan-export") + 1 :])
    return found


def parse(words: list[str]) -> None:
    """Parse a command line without running it."""
    assert words[0] in main.commands, f"no such command: {words[0]}"
    main.commands[words[0]].make_context(words[0], words[1:])


def test_the_readme_shows_every_command(readme: str) -> None:
    shown = {words[0] for words in commands(readme)}
    assert shown == set(main.commands)


def test_the_commands_of_the_readme_parse(readme: str) -> None:
    for words in commands(readme):
        parse(words)


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("inspect bundle --json", "inspect bundle --jason"),
        ("generate bundle prompt -o a.mp4", "generate bundle prompt"),
        ("make-checkpoint --size tiny out", "make-checkpoint --size huge out"),
    ],
)
def test_a_command_that_does_not_parse_is_seen(good: str, bad: str) -> None:
    parse(shlex.split(good))
    with pytest.raises(click.UsageError):
        parse(shlex.split(bad))


def test_the_options_that_the_readme_names_exist(readme: str) -> None:
    known = {"--help"}
    for command in (main, *main.commands.values()):
        for parameter in command.params:
            known.update(parameter.opts, parameter.secondary_opts)
    prose = FENCE.sub("", readme)
    named = set(re.findall(r"`(--[a-z][a-z-]*)", prose))
    assert named
    assert named <= known


def test_the_scripts_that_the_readme_names_exist(readme: str, root: Path) -> None:
    named = set(re.findall(r"(?:scripts|\.ci|docs)/[\w.-]+", readme))
    assert {"scripts/quickstart.sh", "scripts/test.sh"} <= named
    assert [name for name in named if not (root / name).exists()] == []


def test_the_readme_lists_the_exit_codes(readme: str) -> None:
    rows = {int(code) for code in re.findall(r"^\| (\d+) \|", readme, re.MULTILINE)}
    classes = errors.FastWanError.__subclasses__()
    assert {0, *(each.exit_code for each in classes)} <= rows


def test_the_changelog_has_this_version(root: Path) -> None:
    assert f"## [{__version__}]" in (root / "CHANGELOG.md").read_text()


def test_the_map_names_every_module(structure: str, tracked: list[Path]) -> None:
    named = set(PATH.findall(structure))
    modules = {
        file.as_posix()
        for file in tracked
        if file.suffix == ".py"
        and file.name != "__init__.py"
        and (file.parts[0] in STAGES or file.parts[0] == "src")
    }
    assert modules
    assert sorted(modules - named) == []


def test_the_map_names_nothing_that_is_not_there(structure: str, root: Path) -> None:
    named = PATH.findall(structure)
    assert [name for name in named if "*" not in name and not (root / name).exists()] == []


def test_markdown_links_lead_somewhere(root: Path, tracked: list[Path]) -> None:
    broken = []
    for page in (file for file in tracked if file.suffix == ".md"):
        for target in re.findall(r"\]\(([^)#\s]+)", (root / page).read_text()):
            if "://" not in target and not (root / page.parent / target).exists():
                broken.append(f"{page}: {target}")
    assert broken == []
