"""Jobs of GitHub and GitLab, run step by step in bash as their runners run them.

Only what the project's own files use is understood; anything else is an error, as is an expression
that names nothing. A cache is a folder of folders by key.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_EXPRESSION = re.compile(r"\$\{\{ ([\w.-]+) \}\}")
_CONDITION = re.compile(r"([\w.-]+) != 'true'")
_ACTIONS = {"actions/cache/restore@v4", "actions/cache/save@v4"}
_GITHUB_BASH = ("bash", "--noprofile", "--norc", "-eo", "pipefail")


@dataclass
class Outcome:
    """What a job or an action left behind.

    Attributes:
        code: exit code of the step that failed; 0 where none did.
        ran: names of the steps that ran.
        log: stdout and stderr of all steps.
        summary: of the job, Markdown.
        outputs: of the action.
        restored: key by which a cache was found; empty where none was.
    """

    code: int = 0
    ran: list[str] = field(default_factory=list)
    log: str = ""
    summary: str = ""
    outputs: dict[str, str] = field(default_factory=dict)
    restored: str = ""


class Caches:
    """The caches of a repository."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    @property
    def keys(self) -> list[str]:
        """Keys under which something is kept, sorted."""
        return sorted(os.listdir(self._folder))

    def restore(self, path: Path, key: str, prefix: str) -> str:
        """Put what is kept under `key`, or else under a key with `prefix`, at `path`."""
        found = key if key in self.keys else ""
        found = found or next((each for each in self.keys if each.startswith(prefix)), "")
        if found:
            shutil.copytree(self._folder / found, path, dirs_exist_ok=True)
        return found

    def save(self, path: Path, key: str) -> None:
        """Keep what lies at `path`; what is kept already is never replaced."""
        assert key not in self.keys
        shutil.copytree(path, self._folder / key)


class GitHub:
    """A runner of GitHub.

    Args:
        root: of the action.
        workspace: the owner's checkout.
        home: folder of the runner for what it makes between jobs; each job has a new one.
    """

    def __init__(self, root: Path, workspace: Path, home: Path, caches: Caches) -> None:
        self._root = root
        self._workspace = workspace
        self._home = home
        self._caches = caches

    def action(self, action: Mapping[str, Any], given: Mapping[str, str]) -> Outcome:
        """Run a composite action."""
        declared: dict[str, Any] = action["inputs"]
        assert given.keys() <= declared.keys(), f"not inputs: {given.keys() - declared.keys()}"
        lacking = {n for n, each in declared.items() if each.get("required")} - given.keys()
        assert not lacking, f"inputs that must be given: {lacking}"
        self._home.mkdir(exist_ok=True)
        temporary = self._home / f"job-{len(os.listdir(self._home))}"
        temporary.mkdir()
        known = {f"inputs.{name}": str(each.get("default", "")) for name, each in declared.items()}
        known |= {f"inputs.{name}": value for name, value in given.items()}
        known |= {"runner.temp": str(temporary), "runner.os": "Linux", "runner.arch": "X64"}
        outcome = Outcome()
        assert action["runs"]["using"] == "composite"
        for step in action["runs"]["steps"]:
            if not _wanted(step.get("if", "success()"), known, outcome.code == 0):
                continue
            outcome.ran.append(step["name"])
            if "uses" in step:
                written = self._cached(step, known, outcome)
            else:
                written = self._shell(step, known, temporary, outcome)
            known |= {f"steps.{step.get('id')}.outputs.{n}": v for n, v in written.items()}
        summary = temporary / "summary"
        outcome.summary = summary.read_text() if summary.exists() else ""
        outcome.outputs = {n: _filled(o["value"], known) for n, o in action["outputs"].items()}
        return outcome

    def _cached(
        self, step: Mapping[str, Any], known: Mapping[str, str], outcome: Outcome
    ) -> dict[str, str]:
        assert step["uses"] in _ACTIONS
        given = {name: _filled(value, known) for name, value in step["with"].items()}
        if step["uses"].startswith("actions/cache/save"):
            self._caches.save(Path(given["path"]), given["key"])
            return {}
        outcome.restored = self._caches.restore(
            Path(given["path"]), given["key"], given["restore-keys"]
        )
        return {"cache-hit": "true" if outcome.restored == given["key"] else ""}

    def _shell(
        self, step: Mapping[str, Any], known: Mapping[str, str], temporary: Path, outcome: Outcome
    ) -> dict[str, str]:
        assert step["shell"] == "bash"
        assert "${{" not in step["run"], "an input's text would be part of the script"
        script, output = temporary / "script.sh", temporary / "output"
        script.write_text(step["run"])
        output.write_text("")
        environment = {
            **os.environ,
            **{name: _filled(value, known) for name, value in step.get("env", {}).items()},
            "RUNNER_TEMP": str(temporary),
            "GITHUB_ACTION_PATH": str(self._root),
            "GITHUB_OUTPUT": str(output),
            "GITHUB_STEP_SUMMARY": str(temporary / "summary"),
            "GITHUB_PATH": str(temporary / "path"),
        }
        code, text = _run([*_GITHUB_BASH, str(script)], self._workspace, environment)
        outcome.log += text
        outcome.code = outcome.code or code
        return dict(line.split("=", 1) for line in output.read_text().splitlines())


def gitlab(job: Mapping[str, Any], given: Mapping[str, str], workspace: Path) -> Outcome:
    """Run a job of GitLab, before_script and script in one shell.

    Args:
        job: a hidden job that another extends.
        given: variables of the job that extends it.
    """
    assert given.keys() <= job["variables"].keys()
    variables = {"CI_PROJECT_DIR": str(workspace), **job["variables"], **given}
    expanded = {
        name: re.sub(r"\$(\w+)", lambda found: variables[found[1]], str(value))
        for name, value in variables.items()
    }
    script = "\n".join(["set -eo pipefail", *job["before_script"], *job["script"]])
    code, text = _run(["bash", "-c", script], workspace, {**os.environ, **expanded})
    return Outcome(code=code, log=text)


def _run(command: list[str], folder: Path, environment: Mapping[str, str]) -> tuple[int, str]:
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    return done.returncode, done.stdout


def _filled(text: str, known: Mapping[str, str]) -> str:
    """A text with its expressions replaced; an output that a step did not write is empty."""
    filled = _EXPRESSION.sub(lambda found: _value(found[1], known), str(text))
    assert "${{" not in filled, f"not understood: {filled}"
    return filled


def _value(name: str, known: Mapping[str, str]) -> str:
    return known.get(name, "") if name.startswith("steps.") else known[name]


def _wanted(condition: str, known: Mapping[str, str], good: bool) -> bool:
    """Whether a step runs: its condition, and unless it says always() no step has failed."""
    if condition in ("always()", "success()"):
        return good or condition == "always()"
    found = _CONDITION.fullmatch(condition)
    assert found is not None, f"not understood: {condition}"
    return good and _value(found[1], known) != "true"


def expressions(value: Any) -> Iterator[str]:
    """Names in all expressions of a parsed file."""
    if isinstance(value, str):
        yield from _EXPRESSION.findall(value)
        yield from (found[1] for found in _CONDITION.finditer(value))
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from expressions(each)
    elif isinstance(value, list):
        for each in value:
            yield from expressions(each)
