"""What is typed: help with examples, names in any case, completion, --debug anywhere."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from fastwan import __version__
from fastwan.cli import COMMANDS, main
from fastwan.commands.names import Name
from fastwan.config import TARGETS


def completed(*words: str) -> list[str]:
    """What a shell offers for the last of the words."""
    complete = ShellComplete(main, {}, "fastwan-export", "_FASTWAN_EXPORT_COMPLETE")
    return [item.value for item in complete.get_completions(list(words[:-1]), words[-1])]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_ends_with_an_example_that_parses(command: str) -> None:
    text = CliRunner().invoke(main, [command, "--help"]).stdout
    example = text.rpartition("For example:\n")[2].strip()
    program, name, *words = shlex.split(example)
    assert (program, name) == ("fastwan-export", command)
    main.commands[command].make_context(name, words)


def test_the_list_of_commands_has_whole_summaries() -> None:
    text = CliRunner().invoke(main, ["--help"]).stdout
    flat = " ".join(text.split())
    for name in COMMANDS:
        summary = main.commands[name].get_short_help_str(1000)
        assert summary
        assert f"{name} {summary}" in flat
        assert not summary.endswith("...")


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("rtx5090", "rtx5090"), ("RTX5090", "rtx5090"), ("RTX 5090", "rtx5090"),
        ("5090", "rtx5090"), ("gb10", "gb10"), ("A100", "a100"),
        ("090", None), ("ada", None), ("rtx", None), ("5091", None),
    ],
)  # fmt: skip
def test_a_target_is_known_in_any_case_and_by_its_end(typed: str, name: str | None) -> None:
    kind = Name(TARGETS, ends=True)
    if name is None:
        with pytest.raises(click.BadParameter, match="rtx5090"):
            kind.convert(typed, None, None)
        return
    assert kind.convert(typed, None, None) == name


def test_an_end_that_two_names_have_is_refused() -> None:
    assert Name(["rtx5090", "gtx4090"], ends=True).convert("5090", None, None) == "rtx5090"
    with pytest.raises(click.BadParameter):
        Name(["rtx5090", "gtx5090"], ends=True).convert("5090", None, None)
    with pytest.raises(click.BadParameter):
        Name(["rtx5090", "gtx4090"]).convert("5090", None, None)


def test_a_shell_completes_what_can_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bundles" / "b1").mkdir(parents=True)
    (tmp_path / "bundles" / "b1" / "manifest.json").touch()
    (tmp_path / "bundles" / "notes.txt").touch()
    assert completed("ins") == ["inspect"]
    assert completed("plan", "--target", "rtx50") == ["rtx5090", "rtx5080"]
    assert completed("build-engine", "--model", "wan") == ["Wan2.1-T2V-1.3B"]
    assert completed("build-engine", "--components", "dit,d") == ["dit,decoder"]
    assert completed("inspect", "bu") == ["bundles"]
    assert completed("inspect", "bundles/") == ["bundles/b1"]
    assert "--check" in completed("verify", "--ch")


@pytest.mark.parametrize("words", [["--debug", "inspect"], ["inspect", "--debug"], ["inspect"]])
def test_a_traceback_keeps_the_exit_code(words: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(main, [*words, str(tmp_path / "nowhere")])
    assert done.exit_code == 2
    assert ("Traceback" in done.stderr) is ("--debug" in words)
    assert done.stderr.splitlines()[-1].startswith("error: bundle is not a folder")


def test_the_package_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastwan", "-V"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["fastwan-export,", "version", __version__]
