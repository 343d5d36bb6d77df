"""The pipelines to copy: every step is run in bash on the tiny model, green and red."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from testkit.once import Once
from testkit.pipelines import Caches, GitHub, Outcome, expressions, gitlab

pytestmark = pytest.mark.trt

QUICK = {"stages": "static", "build-options": "--components decoder"}
"""Inputs of a job of seconds: the smallest component, and the stage that takes the least."""

VARIABLES = {"checkpoint": "GATE_CHECKPOINT", "stages": "GATE_STAGES",
             "build-options": "GATE_BUILD_OPTIONS", "gate-options": "GATE_OPTIONS"}  # fmt: skip
"""Inputs of the action as the variables of GitLab."""

Job = Callable[..., Outcome]


@dataclass
class Owner:
    """A repository that has a checkpoint and a baseline, with both pipelines.

    Attributes:
        inputs: of every job.
        caches: of GitHub.
    """

    root: Path
    checkout: Path
    inputs: dict[str, str]
    caches: Caches

    def github(self, **other: str) -> Outcome:
        """Run the action."""
        runner = GitHub(self.root, self.checkout, self.checkout.parent / "runner", self.caches)
        return runner.action(
            _action(self.root), {"checkpoint": "checkpoint", **self.inputs, **other}
        )

    def gitlab(self, **other: str) -> Outcome:
        """Run the job of the template."""
        given = {VARIABLES[name]: value for name, value in (self.inputs | other).items()}
        return gitlab(_template(self.root), given, self.checkout)

    @property
    def baseline(self) -> Path:
        return self.checkout / "baseline.json"

    @property
    def failures(self) -> list[str]:
        """Names of the tests that failed in the report's JUnit file."""
        cases = ElementTree.parse(self.checkout / "fastwan-report" / "junit.xml").iter("testcase")
        outcomes = {case.get("name", ""): {each.tag for each in case} for case in cases}
        assert len(outcomes) > 5
        return [name for name, tags in outcomes.items() if tags & {"failure", "error"}]

    def plant(self) -> None:
        """Make the bundle have a kernel more than the baseline."""
        figures = json.loads(self.baseline.read_text())
        figures["stages"]["static"]["decoder.kernels"] -= 1
        self.baseline.write_text(json.dumps(figures))


def _action(root: Path) -> dict[str, Any]:
    action: dict[str, Any] = yaml.safe_load((root / "action.yml").read_text())
    return action


def _template(root: Path) -> dict[str, Any]:
    job: dict[str, Any] = yaml.safe_load((root / "scripts" / "gitlab-gate.yml").read_text())
    return job[".fastwan-gate"]


@pytest.fixture
def owner(
    root: Path, once: Once, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Owner:
    """An owner whose gate is green, with the inputs of `QUICK`."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setenv("FASTWAN_QUIET", "1")

    def accept(folder: Path) -> None:
        folder.mkdir()
        _accept(tiny_checkpoint, folder, QUICK)

    accepted = once("pipeline-accepted", accept)
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "checkpoint").symlink_to(tiny_checkpoint)
    shutil.copy(accepted / "baseline.json", checkout)
    shutil.copytree(accepted / "cache", checkout / ".fastwan-cache")
    caches = Caches(tmp_path / "caches")
    caches.save(accepted / "cache", "fastwan-export-Linux-X64-earlier")
    return Owner(root, checkout, dict(QUICK), caches)


def _accept(checkpoint: Path, folder: Path, inputs: dict[str, str]) -> None:
    """Write a baseline by the commands that docs/ci.md tells, and keep the cache."""
    environment = {**os.environ, "FASTWAN_CACHE_DIR": str(folder / "cache")}
    build = ["build-engine", "--checkpoint", str(checkpoint), "-o", "bundle"]
    build += inputs.get("build-options", "").split()
    update = ["gate", "bundle", "--against", "baseline.json", "--update-baseline"]
    update += ["--stage", inputs.get("stages", "")]
    for words in (build, update):
        subprocess.run(["fastwan-export", *words], cwd=folder, env=environment, check=True)


def test_the_action_is_green_and_red(owner: Owner) -> None:
    (before,) = owner.caches.keys
    green = owner.github()
    assert green.code == 0, green.log
    assert owner.failures == []
    assert green.summary == (owner.checkout / "fastwan-report" / "summary.md").read_text()
    assert green.summary.startswith("# ✅ gate: ")
    assert green.outputs == {"bundle": "fastwan-bundle", "report": "fastwan-report"}
    for folder, file in (("bundle", "manifest.json"), ("report", "index.html")):
        assert (owner.checkout / green.outputs[folder] / file).is_file()
    (kept,) = {*owner.caches.keys} - {before}
    assert re.fullmatch(r"fastwan-export-Linux-X64-[0-9a-f]{64}", kept)
    assert (green.restored, "Keep the cache" in green.ran) == (before, True)
    owner.plant()
    red = owner.github()
    assert red.code == 5, red.log
    assert owner.failures == ["decoder.kernels"]
    assert re.search(r"WORSE +decoder\.kernels: 57, baseline 56", red.log)
    assert red.summary.startswith("# ❌ gate: ")
    assert "decoder.kernels" in red.summary
    assert (red.restored, "Keep the cache" in red.ran) == (kept, False)


def test_the_template_is_green_and_red(owner: Owner) -> None:
    green = owner.gitlab()
    assert green.code == 0, green.log
    assert owner.failures == []
    owner.plant()
    red = owner.gitlab()
    assert red.code == 5, red.log
    assert owner.failures == ["decoder.kernels"]
    artifacts = _template(owner.root)["artifacts"]
    assert artifacts["when"] == "always"
    named = [
        *artifacts["paths"],
        artifacts["reports"]["junit"],
        *_template(owner.root)["cache"]["paths"],
    ]
    made = [name for name in named if (owner.checkout / name).exists()]
    assert made == [name for name in named if name != ".pip-cache/"]


def _nan(checkpoint: Path) -> None:
    path = checkpoint / "taew2_1.safetensors"
    tensors = load_file(path)
    name = max(name for name in tensors if name.startswith("decoder."))
    tensors[name] = np.full_like(tensors[name], np.nan)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("inputs", "spoil", "said", "ran"),
    [
        ({"checkpoint": "$(touch planted)"}, None, "does not exist ($(touch p", "Key of the cache"),
        ({"baseline": "absent.json"}, None, "absent.json", "Gate"),
        ({}, _nan, "NaN", "Build"),
    ],
    ids=["checkpoint", "baseline", "nan"],
)
def test_a_job_without_a_report_says_why(
    owner: Owner, inputs: dict[str, str], spoil: Callable[[Path], None] | None, said: str, ran: str
) -> None:
    """An old report is not taken for the job's, and text of an input is no part of a script."""
    (owner.checkout / "fastwan-report").mkdir()
    (owner.checkout / "fastwan-report" / "summary.md").write_text("# ✅ gate: of another job")
    if spoil is not None:
        checkpoint = owner.checkout / "checkpoint"
        source = checkpoint.resolve()
        checkpoint.unlink()
        spoil(Path(shutil.copytree(source, checkpoint)))
    outcome = owner.github(**inputs)
    assert outcome.code == 2, outcome.log
    assert outcome.ran[-2:] == [ran, "Summary"]
    first, _, error = outcome.summary.splitlines()
    assert first == "# ❌ no report"
    assert error.startswith("error: ")
    assert said in error
    assert outcome.outputs["report"] == "fastwan-report"
    assert not (owner.checkout / "planted").exists()


def test_every_input_is_used_and_every_expression_names_something(root: Path) -> None:
    action = _action(root)
    steps = action["runs"]["steps"]
    ids = {step["id"] for step in steps if "id" in step}
    names = set(expressions(action))
    assert {name for name in names if name.startswith("inputs.")} == {
        f"inputs.{name}" for name in action["inputs"]
    }
    assert {name.split(".")[1] for name in names if name.startswith("steps.")} == ids
    for step in steps:
        used = set(re.findall(r"\$\{?([A-Z_]+)", step.get("run", "")))
        given = {*step.get("env", {}), "RUNNER_TEMP", "FASTWAN_CACHE_MAX_BYTES"}
        assert {name for name in used if not name.startswith("GITHUB_")} <= given


def test_the_page_shows_pipelines_that_fit(root: Path) -> None:
    page = (root / "docs" / "ci.md").read_text()
    shown = [
        yaml.safe_load(text) for text in re.findall(r"```yaml[^\n]*\n(.*?)```", page, re.DOTALL)
    ]
    github, gitlab_ci = shown
    action, template = _action(root), _template(root)
    required = {name for name, each in action["inputs"].items() if each.get("required")}
    assert len(github["jobs"]) == 2
    for job in github["jobs"].values():
        _, gate, upload = job["steps"]
        assert gate["uses"] == "OWNER/fastwan-export@v1"
        assert required <= gate["with"].keys() <= action["inputs"].keys()
        assert upload["if"] == "always()"
        assert upload["with"]["path"] == "${{ steps.gate.outputs.report }}"
    assert "report" in action["outputs"]
    (include,) = gitlab_ci.pop("include")
    assert include["remote"].endswith("/v1/scripts/gitlab-gate.yml")
    assert len(gitlab_ci) == 2
    for job in gitlab_ci.values():
        assert job["extends"] == ".fastwan-gate"
        assert job["variables"].keys() - {"PIP_EXTRA_INDEX_URL"} <= template["variables"].keys()
    listed = set(
        re.findall(r"`([a-z-]+)`", "".join(re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)))
    )
    assert action["inputs"].keys() <= listed


@pytest.mark.slow
@pytest.mark.parametrize("system", ["github", "gitlab"])
def test_the_whole_gate_is_green_and_red(
    owner: Owner, system: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    owner.inputs.clear()
    _accept(tiny_checkpoint, tmp_path, {})
    shutil.copy(tmp_path / "baseline.json", owner.checkout)
    job: Job = getattr(owner, system)
    green = job()
    assert green.code == 0, green.log
    assert "verify: 18 of 18 checks passed" in green.log
    red = job(**{"build-options": "--text-encoder-recipe nvfp4"})
    assert red.code == 5, red.log
    assert {"text_encoder.bytes", "text_encoder.kernels"} <= set(owner.failures)
    other = job(**{"build-options": "--fusion none"})
    assert other.code == 2, other.log
    assert {"fusion", "weights"} <= set(owner.failures)
