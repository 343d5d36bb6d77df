"""Twelve planted regressions, each caught by the stage that is there for it and by no other.

`test_an_unchanged_bundle_passes` is the twin of all of them: the same pipeline without the fault.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastwan.quality.gate.run import STAGES
from fastwan.runtime.device.player import Player
from fastwan.runtime.device.session import Session

pytestmark = pytest.mark.trt

LINEAR = "blocks.0.ffn.fc1"
STEP, MOVED = "step_1", "dit.per_run.bytes_moved"
Patch = pytest.MonkeyPatch
Fault = Callable[[Any, Any, Patch], None]


def failing(report: Any) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for finding in report.findings:
        if finding.failed:
            found.setdefault(finding.stage, set()).add(finding.check)
    return found


def lost_gemm(mutant: Any, _pipeline: Any, _patch: Patch) -> None:
    """The builder took a bf16 kernel for a linear."""
    assert mutant.lose_gemm(LINEAR) == 2


def flipped_nibble(mutant: Any, _pipeline: Any, _patch: Patch) -> None:
    def flip(raw: np.ndarray) -> np.ndarray:
        raw[1000] ^= 0x10
        return raw

    mutant.weight(f"{LINEAR}.weight", flip)
    mutant.rehash()


def smallest_kernel(records: list[dict[str, Any]]) -> dict[str, Any]:
    """A kernel that moves little and computes nothing."""
    moving = [each for each in records if each["kind"] == "memory" and not each["constants"]]
    return min(
        moving, key=lambda each: sum(np.prod(t["shape"]) for t in each["inputs"] + each["outputs"])
    )


def one_more_kernel(mutant: Any, _pipeline: Any, _patch: Patch) -> None:
    with mutant.layers() as layers:
        records = layers["segment_01"]
        records.append(smallest_kernel(records))
    mutant.rehash()


def more_bytes(mutant: Any, pipeline: Any, _patch: Patch) -> None:
    """A kernel of every step writes 5 % of the step's bytes more."""
    figures = json.loads(pipeline.baseline.read_text())["stages"]["static"]
    more = round(0.05 * figures[MOVED])
    with mutant.layers() as layers:
        outputs = smallest_kernel(layers["segment_01"])["outputs"]
        outputs.append({**outputs[0], "name": "more", "dtype": "Int8", "shape": [more]})
    mutant.rehash()


def doubled_scratch(mutant: Any, _pipeline: Any, _patch: Patch) -> None:
    with mutant.manifest() as fields:
        engine = fields["engines"]["segment_01"]
        assert engine["scratch_bytes"] > 0
        engine["scratch_bytes"] *= 2
        others = (each["scratch_bytes"] for each in fields["engines"].values())
        assert engine["scratch_bytes"] == max(others)


def host_wait(_mutant: Any, _pipeline: Any, patch: Patch) -> None:
    """The host waits between the launch and the frames."""
    frames = Session._frames

    def waiting(session: Session, player: Player) -> Any:
        player.synchronize()
        return frames(session, player)

    patch.setattr(Session, "_frames", waiting)


def slower_step(_mutant: Any, pipeline: Any, _patch: Patch) -> None:
    pipeline.clock.seconds[STEP] *= 1.1


def missing_stage(_mutant: Any, pipeline: Any, _patch: Patch) -> None:
    del pipeline.clock.seconds["decode"]


def other_cohort(_mutant: Any, pipeline: Any, _patch: Patch) -> None:
    fields = json.loads(pipeline.baseline.read_text())
    fields["cohort"]["target"] = "rtx5080"
    pipeline.baseline.write_text(json.dumps(fields))


def golden_of_other_weights(_mutant: Any, pipeline: Any, _patch: Patch) -> None:
    pipeline.goldens = Path(shutil.copytree(pipeline.goldens, pipeline.root.parent / "goldens"))
    record = pipeline.goldens / "goldens.json"
    fields = json.loads(record.read_text())
    fields["made_of"]["weights"] = "0" * 64
    record.write_text(json.dumps(fields))


def sampler_constant(mutant: Any, _pipeline: Any, _patch: Patch) -> None:
    with mutant.manifest() as fields:
        fields["samplers"][0]["shift"] = 3.001


def attention_scale(mutant: Any, _pipeline: Any, _patch: Patch) -> None:
    with mutant.manifest() as fields:
        fields["regions"]["region_01"]["nodes"][0]["attributes"]["softmax_scale"] *= 1.01


PLANTED: dict[Fault, tuple[str, set[str], int]] = {
    lost_gemm: (
        "static", {"fp4_engines", "dit.quantised_gemm_share", "dit.weight_bytes", MOVED}, 4
    ),
    flipped_nibble: ("verify", {"weights_bit_exact"}, 4),
    one_more_kernel: ("static", {"dit.kernels", MOVED}, 5),
    more_bytes: ("static", {MOVED}, 5),
    doubled_scratch: (
        "static", {"dit.scratch_bytes", "device_bytes.scratch", "device_bytes.total"}, 5
    ),
    host_wait: ("schedule", {"host_syncs_in_loop"}, 5),
    slower_step: ("times", {STEP}, 5),
    missing_stage: ("times", {"decode"}, 4),
    other_cohort: ("baseline", {"target"}, 2),
    golden_of_other_weights: ("goldens", {"made_of.weights"}, 2),
    sampler_constant: ("verify", {"sampler"}, 4),
    attention_scale: ("verify", {"engine_plan"}, 4),
}  # fmt: skip
"""By fault: the stage, the checks of it that fail, and the exit code."""


def test_an_unchanged_bundle_passes(untouched: Any, quick_verify: None) -> None:
    report = untouched.run()
    assert report.exit_code == 0
    assert report.stages == tuple(STAGES)
    assert {finding.stage for finding in report.findings} == {"baseline", *STAGES}
    assert {finding.verdict for finding in report.findings} == {"passed"}


@pytest.mark.parametrize("fault", PLANTED, ids=lambda fault: fault.__name__)
def test_a_planted_regression_is_caught_by_its_stage_alone(
    changed: Any, mutant: Any, quick_verify: None, monkeypatch: Patch, fault: Fault
) -> None:
    stage, checks, code = PLANTED[fault]
    fault(mutant, changed, monkeypatch)
    report = changed.run()
    assert failing(report) == {stage: checks}
    assert report.exit_code == code


@pytest.mark.slow
@pytest.mark.parametrize("fault", PLANTED, ids=lambda fault: fault.__name__)
def test_the_checks_that_take_long_see_no_more_of_it(
    changed: Any, mutant: Any, monkeypatch: Patch, fault: Fault
) -> None:
    stage, checks, code = PLANTED[fault]
    fault(mutant, changed, monkeypatch)
    report = changed.run()
    assert set(failing(report)) == {stage}
    assert failing(report)[stage] >= checks
    assert report.exit_code == code


def jittered(seconds: dict[str, float], seed: int) -> dict[str, float]:
    """Times of another run: each up to 2 % to either side, as on a GPU with fixed clocks."""
    draw = random.Random(seed)
    return {name: value * (1 + draw.uniform(-0.02, 0.02)) for name, value in seconds.items()}


def test_fifty_runs_of_an_unchanged_bundle_raise_no_alarm(untouched: Any) -> None:
    seconds = dict(untouched.clock.seconds)
    for seed in range(50):
        untouched.clock.seconds = jittered(seconds, seed)
        report = untouched.run("static", "schedule", "predicted", "times")
        assert failing(report) == {}
        assert {finding.verdict for finding in report.findings} == {"passed"}


@pytest.mark.slow
@pytest.mark.parametrize("part", range(5))
def test_fifty_complete_runs_raise_no_alarm(untouched: Any, part: int) -> None:
    seconds = dict(untouched.clock.seconds)
    for seed in range(10 * part, 10 * part + 10):
        untouched.clock.seconds = jittered(seconds, seed)
        assert failing(untouched.run()) == {}
