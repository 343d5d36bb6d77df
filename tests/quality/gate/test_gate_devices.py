"""The gate on a Hopper GPU that emulates the target: its times, and the full size of verify."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastwan.bundle import Bundle
from fastwan.errors import BadInput, EnvironmentLacks
from fastwan.quality.emulated.run import FullSizeResult
from fastwan.quality.findings import Finding, GateReport
from fastwan.quality.gate import stages
from fastwan.quality.gate.baseline_file import Baseline
from fastwan.quality.gate.history import read_history
from fastwan.quality.gate.run import gate
from fastwan.quality.verify.report import Check

pytestmark = pytest.mark.usefixtures("constants")

WHOLE = Finding(stage="verify", check="integrity", verdict="passed")
FULL_SIZE = ("emulated_operands", "emulated_blocks")


class Emulated:
    """A pipeline whose runner emulates the bundle's target.

    Attributes:
        played: how often the full size of verify was played.
    """

    def __init__(self, root: Path, folder: Path, clock: Any, patch: pytest.MonkeyPatch) -> None:
        self.root, self.baseline, self.clock, self.played = root, folder / "b.json", clock, 0
        self.history = folder / "history.jsonl"
        clock.device = "NVIDIA H100, FP4 emulated as on 170 multiprocessors"
        clock.facts["emulated"] = True
        # The bundle has no files of its own.
        patch.setattr(stages, "integrity", lambda _: WHOLE)
        patch.setattr(stages, "plan", lambda _: [])
        patch.setattr(stages, "cuda_setting", lambda _: None)
        patch.setattr(stages, "check_full_size", self.check)
        patch.setattr(stages, "full_size_names", lambda _: FULL_SIZE)
        self.value = 0.0

    def check(self, *_: Any, **__: Any) -> FullSizeResult:
        """What verify finds at the full size."""
        self.played += 1
        checks = [
            Check(name=name, metric="of a test", value=self.value, limit=0.5, label="emulated")
            for name in FULL_SIZE
        ]
        return FullSizeResult(checks=tuple(checks))

    def __call__(self, *names: str, device: str = "emulated", **options: Any) -> GateReport:
        return gate(
            self.root, self.baseline, stages=names, device=device, measure=self.clock, **options
        )


@pytest.fixture
def runner(
    make_bundle: Callable[..., Bundle],
    tmp_path: Path,
    make_clock: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> Emulated:
    root = make_bundle().root
    made = Emulated(root, tmp_path, make_clock(root), monkeypatch)
    assert made("verify", "times", update=True).exit_code == 0
    return made


def verdicts(report: GateReport) -> dict[str, str]:
    return {each.check: each.verdict for each in report.findings if each.verdict != "passed"}


def test_times_of_an_emulation_are_held_and_labelled(runner: Emulated) -> None:
    report = runner("times", history=runner.history)
    held = [each for each in report.findings if each.stage == "times" and each.unit]
    checks = {each.check for each in held}
    assert checks >= {"total", "step_0", "loading"}
    assert "memory_peak_bytes" not in checks, "torch's own varies from one run to the next"
    assert {each.label for each in held} == {"emulated"}
    assert report.exit_code == 0
    assert read_history(runner.history)[0].cohort["device"] == "emulated"
    runner.clock.seconds["step_0"] *= 1.2
    slower = runner("times")
    assert (verdicts(slower), slower.exit_code) == ({"step_0": "worse"}, 5)
    assert slower.rewrite.endswith("--stage times --device emulated --update-baseline")


def test_times_of_a_target_and_of_its_emulation_are_two_cohorts(runner: Emulated) -> None:
    assert Baseline.read(runner.baseline).gpu == {
        "device": "emulated", "gpu": runner.clock.device, "driver": "580.1", "cuda": "13.0",
    }  # fmt: skip
    assert Baseline.read(runner.baseline).clocks == {"sm_mhz": 2400, "memory_mhz": 14000}
    runner.clock.facts["emulated"] = False
    report = runner("times", device="cuda")
    assert verdicts(report) == {"cohort.device": "refused", "video": "skipped"}
    assert report.findings[1].text == "baseline emulated, this run cuda"
    assert report.exit_code == 2


def test_a_device_that_was_not_asked_for_is_not_used(runner: Emulated) -> None:
    """A pipeline without the device holds the rest of the same baseline."""
    played = runner.played
    report = runner(device="auto")
    told = {each.check: each for each in report.findings if each.stage in ("verify", "times")}
    assert told["video"].verdict == "skipped"
    assert told["video"].text.endswith("--device emulated")
    assert {told[name].verdict for name in FULL_SIZE} == {"skipped"}
    assert runner.played == played


def test_the_full_size_belongs_to_verify(runner: Emulated) -> None:
    assert Baseline.read(runner.baseline).checks == (
        "emulated_blocks", "emulated_operands", "integrity",
    )  # fmt: skip
    assert verdicts(runner("verify")) == {}
    runner.value = 0.6
    report = runner("verify")
    assert verdicts(report) == dict.fromkeys(FULL_SIZE, "wrong")
    assert report.exit_code == 4
    assert {each.label for each in report.findings if each.check in FULL_SIZE} == {"emulated"}


def test_a_check_that_no_device_has_any_more_is_wrong(runner: Emulated) -> None:
    fields = json.loads(runner.baseline.read_text())
    fields["checks"].append("emulated_steps")
    runner.baseline.write_text(json.dumps(fields))
    assert verdicts(runner("verify")) == {"emulated_steps": "wrong"}


def test_a_device_is_refused_before_the_work(
    runner: Emulated, make_bundle: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match="unknown device 'cpu'"):
        runner("schedule", device="cpu")
    assert runner("times", device="emulated").exit_code == 0
    runner.root = make_bundle(components=("decoder",)).root
    with pytest.raises(BadInput, match="the emulated device computes attention between engines"):
        runner("times")
    monkeypatch.setattr("fastwan.runtime.device.choice.cuda_device_count", lambda: 0)
    for device in ("cuda", "emulated"):
        with pytest.raises(EnvironmentLacks, match=r"no CUDA device.*leave --device"):
            runner("schedule", device=device)
