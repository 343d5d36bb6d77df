"""The scripts' shared environment, with a stand-in for Python that records what it is told."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

STAND_IN = """#!/bin/sh
# Answers version checks, writes down installs, and makes an environment of copies of itself.
case "$*" in
  *version_info*) exit ${OLD:-0} ;;
  "-m venv"*) shift $(($# - 1)); mkdir -p "$1/bin"
              for name in python fastwan-export; do cp "$0" "$1/bin/$name"; done ;;
  "-m pip"*) echo "$@" >> "$CALLS"; exit ${BROKEN_PIP:-0} ;;
  "-m pytest"*) echo "$@"; pwd ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path, root: Path) -> Path:
    """A project that has only the scripts and what they read."""
    project = tmp_path / "project"
    shutil.copytree(root / "scripts", project / "scripts")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(root / name, project)
    python = tmp_path / "python-stand-in"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    return project


def run_tests(
    project: Path, *arguments: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("FASTWAN_")}
    settings = {
        "FASTWAN_PYTHON": str(project.parent / "python-stand-in"),
        "CALLS": str(project.parent / "calls"),
    }
    return subprocess.run(
        [str(project / "scripts" / "test.sh"), *arguments],
        env={**clean, **settings, **environment}, cwd=cwd, capture_output=True, text=True,
    )  # fmt: skip


def installs(project: Path) -> list[str]:
    calls = project.parent / "calls"
    return calls.read_text().splitlines() if calls.exists() else []


@pytest.mark.parametrize("script", ["quickstart.sh", "test.sh", "docs.sh", "environment.sh"])
def test_scripts_are_bash(root: Path, script: str) -> None:
    subprocess.run(["bash", "-n", str(root / "scripts" / script)], check=True)


def test_the_environment_is_installed_once(checkout: Path, tmp_path: Path) -> None:
    first = run_tests(checkout, "-k", "name of a test", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    said, folder = first.stdout.splitlines()
    assert said.startswith("-m pytest ")
    assert said.endswith(" -k name of a test")
    assert folder == str(checkout)
    (call,) = installs(checkout)
    assert f"-c {checkout}/constraints.txt -e {checkout}[dev,docs]" in call
    assert run_tests(checkout).returncode == 0
    assert len(installs(checkout)) == 1


@pytest.mark.parametrize(
    ("arguments", "parallel"),
    [
        ([], True),
        (["tests/engines", "--maxfail=1"], True),
        (["-m", "slow"], False),
        (["-mgpu"], False),
        (["-p", "no:xdist"], False),
    ],
)
def test_processes_share_the_tests_but_those_picked_by_a_mark(
    checkout: Path, arguments: list[str], parallel: bool
) -> None:
    said = run_tests(checkout, *arguments).stdout.splitlines()[0].split()
    assert ("-n" in said) == ("--dist" in said) == parallel
    assert said[len(said) - len(arguments) :] == arguments


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_pin_installs_again(checkout: Path, name: str) -> None:
    run_tests(checkout)
    with (checkout / name).open("a") as stream:
        stream.write("# another\n")
    assert run_tests(checkout).returncode == 0
    assert len(installs(checkout)) == 2


def test_a_failed_install_is_tried_again(checkout: Path) -> None:
    failed = run_tests(checkout, BROKEN_PIP="1")
    assert failed.returncode == 3
    assert failed.stderr.splitlines()[-1].startswith("pip could not install")
    assert run_tests(checkout).returncode == 0
    assert len(installs(checkout)) == 2


def test_the_environment_may_lie_elsewhere(checkout: Path, tmp_path: Path) -> None:
    assert run_tests(checkout, FASTWAN_VENV=str(tmp_path / "elsewhere")).returncode == 0
    assert (tmp_path / "elsewhere" / "bin" / "python").exists()
    assert not (checkout / ".venv").exists()


def test_an_old_python_is_refused_in_one_line(checkout: Path) -> None:
    refused = run_tests(checkout, OLD="1")
    assert refused.returncode == 3
    (line,) = refused.stderr.splitlines()
    assert line.startswith("no Python 3.11 or newer")
    assert "FASTWAN_PYTHON" in line
    assert not (checkout / ".venv").exists()
