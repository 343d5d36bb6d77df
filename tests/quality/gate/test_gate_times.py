"""Times by a fake clock: cohorts of GPUs, throttling, spread, and the rolling median."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastwan.bundle import Bundle
from fastwan.errors import BadInput, EnvironmentLacks
from fastwan.quality.bench import summarize
from fastwan.quality.findings import GateReport
from fastwan.quality.gate.history import LAST, read_history
from fastwan.quality.gate.run import gate
from fastwan.quality.gpu_state import GpuState

pytestmark = pytest.mark.usefixtures("constants")


class Runs:
    """Runs of one pipeline on a GPU."""

    def __init__(self, bundle: Path, folder: Path, clock: Any) -> None:
        self.clock = clock
        self.baseline, self.history = folder / "baseline.json", folder / "history.jsonl"
        self._bundle = bundle

    def __call__(self, *, stages: tuple[str, ...] = ("times",), **options: Any) -> GateReport:
        return gate(self._bundle, self.baseline, stages=stages, measure=self.clock, **options)

    def verdicts(self, report: GateReport) -> dict[str, str]:
        """Verdicts of the checks that did not plainly pass."""
        return {each.check: each.verdict for each in report.findings if each.verdict != "passed"}


@pytest.fixture
def runs(make_bundle: Callable[..., Bundle], tmp_path: Path, make_clock: Any) -> Runs:
    root = make_bundle().root
    made = Runs(root, tmp_path, make_clock(root))
    assert made(update=True).exit_code == 0
    return made


def state(**facts: Any) -> GpuState:
    return GpuState(**{"sm_mhz": 2400, "memory_mhz": 14000, "driver": "580.1", **facts})


def test_the_same_times_pass_and_slower_ones_do_not(runs: Runs) -> None:
    assert runs.verdicts(runs()) == {}
    runs.clock.seconds["step_0"] *= 1.049
    assert runs().exit_code == 0
    runs.clock.seconds["step_0"] *= 1.01
    report = runs()
    assert (runs.verdicts(report), report.exit_code) == ({"step_0": "worse"}, 5)
    assert runs(limits=["times.step_0=0.1"]).exit_code == 0


def test_loading_is_held_apart(runs: Runs) -> None:
    runs.clock.facts["load_seconds"] = 2.4
    assert runs.verdicts(runs()) == {}
    runs.clock.facts["load_seconds"] = 2.6
    assert runs.verdicts(runs()) == {"loading": "worse"}


def test_a_faster_stage_is_reported_with_the_command_that_rewrites(runs: Runs) -> None:
    runs.clock.seconds["step_0"] /= 2
    report = runs()
    assert (runs.verdicts(report), report.exit_code) == ({"step_0": "improved"}, 0)
    assert report.rewrite.endswith("--stage times --update-baseline")
    runs(update=True)
    assert runs.verdicts(runs()) == {}


@pytest.mark.parametrize("seconds", [0.0, None])
def test_a_stage_that_is_zero_or_missing_is_wrong(runs: Runs, seconds: float | None) -> None:
    if seconds is None:
        del runs.clock.seconds["decode"]
    else:
        runs.clock.seconds["decode"] = seconds
    report = runs()
    assert (runs.verdicts(report), report.exit_code) == ({"decode": "wrong"}, 4)


def test_a_stage_that_is_not_a_number_is_wrong(runs: Runs) -> None:
    times = summarize([runs.clock.seconds])
    nan = times["decode"].model_copy(update={"median_ms": float("nan")})
    runs.clock.facts["times"] = {**times, "decode": nan}
    report = runs()
    assert (runs.verdicts(report), report.exit_code) == ({"decode": "wrong"}, 4)


def test_a_stage_of_zero_in_the_baseline_is_refused(runs: Runs) -> None:
    fields = json.loads(runs.baseline.read_text())
    fields["stages"]["times"]["decode"] = 0.0
    runs.baseline.write_text(json.dumps(fields))
    report = runs()
    assert (runs.verdicts(report), report.exit_code) == ({"decode": "refused"}, 2)
    (finding,) = (each for each in report.findings if each.check == "decode")
    assert "already red" in finding.text


@pytest.mark.parametrize(
    ("change", "checks"),
    [
        ({}, set()),
        ({"device": "NVIDIA H200"}, {"cohort.gpu"}),
        ({"driver_cuda": "13.1"}, {"cohort.cuda"}),
        ({"states": (state(driver="590.0"),)}, {"cohort.driver"}),
        ({"states": (state(sm_mhz=2350),)}, set()),
        ({"states": (state(sm_mhz=1500),)}, {"cohort.sm_mhz"}),
        ({"states": (state(throttled=("power cap",)),)}, set()),
        ({"states": (state(throttled=("thermal (hardware)",)),)}, {"throttling"}),
    ],
)
def test_nothing_is_compared_with_another_gpu_or_clock(
    runs: Runs, change: dict[str, Any], checks: set[str]
) -> None:
    runs.clock.device = change.pop("device", runs.clock.device)
    if "states" in change:
        runs.clock.facts["gpu_states"] = change.pop("states")
    runs.clock.facts |= change
    report = runs()
    if not checks:
        assert runs.verdicts(report) == {}
        return
    assert runs.verdicts(report) == {**dict.fromkeys(checks, "refused"), "video": "skipped"}
    assert report.exit_code == 2


def test_times_that_are_far_apart_are_refused(runs: Runs) -> None:
    def spread(share: float) -> GateReport:
        seconds = runs.clock.seconds
        late = {**seconds, "decode": seconds["decode"] * (1 + share)}
        runs.clock.facts["times"] = summarize([seconds, seconds, late])
        return runs()

    assert runs.verdicts(spread(0.4)) == {}
    assert runs.verdicts(spread(0.6)) == {"spread.decode": "refused", "video": "skipped"}


@pytest.mark.parametrize(
    ("stage", "late", "refused"),
    [("copy", 0.29, False), ("copy", 0.31, True), ("text", 9.0, False), ("total", 900.0, False)],
)
def test_a_spread_within_a_limit_or_on_the_hosts_clock_is_held(
    runs: Runs, stage: str, late: float, refused: bool
) -> None:
    seconds = {**runs.clock.seconds, "copy": 0.0001}
    other = {**seconds, stage: seconds[stage] + late / 1e3}
    runs.clock.facts["times"] = summarize([seconds, seconds, other])
    assert (runs.verdicts(runs()).get(f"spread.{stage}") == "refused") == refused


def test_times_that_cannot_be_compared_do_not_become_the_baseline(runs: Runs) -> None:
    before = runs.baseline.read_text()
    runs.clock.facts["gpu_states"] = (state(throttled=("thermal (software)",)),)
    report = runs(update=True)
    assert (report.rewritten, report.exit_code) == (False, 2)
    assert runs.baseline.read_text() == before


def test_a_history_lends_its_rolling_median(runs: Runs) -> None:
    """A baseline that was taken on a lucky day raises no alarm on usual ones."""
    runs.clock.seconds["decode"] *= 1.04
    for _ in range(3):
        assert runs(history=runs.history).exit_code == 0
    runs.clock.seconds["decode"] *= 1.04  # 8 % beyond the baseline
    assert runs.verdicts(runs()) == {"decode": "worse"}
    assert runs.verdicts(runs(history=runs.history)) == {}
    assert [record.passed for record in read_history(runs.history)] == [True] * 4


def test_many_small_losses_add_up_to_a_drift(runs: Runs) -> None:
    seen: list[dict[str, str]] = []
    for _ in range(3 * LAST):
        seen.append(runs.verdicts(runs(history=runs.history)))
        runs.clock.seconds["decode"] *= 1.005
    assert seen[0] == {}
    assert any("drift.decode" in verdicts for verdicts in seen)


def test_failed_runs_and_other_cohorts_do_not_count(runs: Runs) -> None:
    slow = runs.clock.seconds["decode"] * 3
    runs.clock.seconds["decode"] = slow
    for _ in range(4):
        assert runs.verdicts(runs(history=runs.history)) == {"decode": "worse"}
    assert [record.passed for record in read_history(runs.history)] == [False] * 4


@pytest.mark.parametrize("line", ["nonsense", "{}", '{"kind": "gate-times"}', ""])
def test_a_history_is_read_strictly(runs: Runs, line: str) -> None:
    runs(history=runs.history)
    assert len(read_history(runs.history)) == 1
    with runs.history.open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(BadInput, match=r"history\.jsonl, line 2"):
        runs(history=runs.history)


def test_without_a_gpu_times_are_skipped_unless_asked_for(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastwan.runtime.device.choice.cuda_device_count", lambda: 0)
    monkeypatch.setattr("fastwan.quality.gate.run.STAGES", {
        name: run for name, run in gate.__globals__["STAGES"].items() if name == "times"
    })  # fmt: skip
    report = runs(stages=())
    assert [(each.check, each.verdict) for each in report.findings[1:]] == [("video", "skipped")]
    with pytest.raises(EnvironmentLacks, match="no CUDA device"):
        gate(Path(report.bundle.path), runs.baseline, stages=["times"])
