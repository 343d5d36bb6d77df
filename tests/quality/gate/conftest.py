"""The tiny bundle, the baseline and the goldens that were made of it, and times by a fake clock."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from fastwan.bundle import open_bundle
from fastwan.quality.bench import counts, summarize
from fastwan.quality.bench_report import BenchReport, Measurement
from fastwan.quality.findings import GateReport
from fastwan.quality.gate import stages
from fastwan.quality.gate.run import gate
from fastwan.quality.goldens.run import make_goldens
from fastwan.quality.gpu_state import GpuState
from fastwan.quality.verify.report import Planned
from fastwan.quality.verify.subject import Subject
from fastwan.runtime.model.samplers import schedule_of
from testkit.mutant import Mutant
from testkit.once import Once
from testkit.tracing import quick_traces

SLOW_CHECKS = {
    "graph_fp32", "graph_bf16", "cpu_reference", "decoder", "step_0", "step_1", "step_2", "frames",
}  # fmt: skip
"""Checks of verify that take seconds each; a test that is marked slow runs them, too."""

SECONDS = {"total": 1.35, "text": 0.1, "step_0": 0.4, "step_1": 0.4, "step_2": 0.4, "decode": 0.05}
"""By stage: what the fake clock says of a video."""


@dataclass
class Clock:
    """Measurements of a GPU that is not there.

    Attributes:
        seconds: by stage, of every video; a test changes them.
        facts: fields of the measurement that a test changes.
    """

    bundle: Path
    seconds: dict[str, float] = field(default_factory=lambda: dict(SECONDS))
    facts: dict[str, Any] = field(default_factory=dict)
    device: str = "NVIDIA GeForce RTX 5090"

    @cached_property
    def counts(self) -> BenchReport:
        """Of the bundle, which no test changes any more once it is timed."""
        bundle = open_bundle(self.bundle, sizes=False)
        return counts(bundle, schedule_of(bundle.manifest.sampler_spec()))

    def __call__(self) -> BenchReport:
        state = GpuState(sm_mhz=2400, memory_mhz=14000, throttled=(), driver="580.1")
        measured = Measurement(
            compute_capability=120, driver_cuda="13.0", prompt="a", runs=3, warmup=1,
            times=summarize([self.seconds, self.seconds, self.seconds]), load_seconds=2.0,
            runtime_cache="unused", checked=None, kernel_choices=(), memory_peak_bytes=10**9,
            gpu_states=(state, None, state), eager_reason="",
        )  # fmt: skip
        measured = measured.model_copy(update=self.facts)
        return self.counts.model_copy(update={"device": self.device, "measurement": measured})


@dataclass
class Pipeline:
    """A pipeline of an owner: a bundle, its baseline, its goldens, and a GPU."""

    root: Path
    baseline: Path
    goldens: Path
    clock: Clock

    def run(self, *stages: str, **options: Any) -> GateReport:
        """Run stages, by default all of them."""
        return gate(
            self.root, self.baseline, stages=stages, measure=self.clock,
            goldens=None if stages and "goldens" not in stages else self.goldens, **options,
        )  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def _trace_once() -> Iterator[None]:
    with quick_traces():
        yield


def _without(plan: Callable[[Subject], list[Planned]], slow: Collection[str]) -> Any:
    return lambda subject: [each for each in plan(subject) if not set(each.names) & set(slow)]


@pytest.fixture
def quick_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the checks of verify out that take seconds."""
    monkeypatch.setattr(stages, "plan", _without(stages.plan, SLOW_CHECKS))


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU, as far as the stage of times asks for one before it measures."""
    monkeypatch.setattr("fastwan.runtime.device.choice.cuda_device_count", lambda: 1)


@pytest.fixture(scope="session")
def make_clock() -> type[Clock]:
    """A clock for the bundle at a path."""
    return Clock


@pytest.fixture(scope="session")
def accepted(once: Once, tiny_bundle: Path) -> Path:
    """A folder with the baseline and the goldens of the tiny bundle; read only."""

    def make(folder: Path) -> None:
        folder.mkdir()
        make_goldens(tiny_bundle, folder / "goldens")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stages, "plan", _without(stages.plan, SLOW_CHECKS))
            report = gate(
                tiny_bundle, folder / "baseline.json", update=True, measure=Clock(tiny_bundle),
                stages=("static", "verify", "schedule", "predicted", "times"),
            )  # fmt: skip
        assert (report.exit_code, report.rewritten) == (0, True)

    return once("gate-accepted", make)


@pytest.fixture
def untouched(tiny_bundle: Path, accepted: Path, tmp_path: Path) -> Pipeline:
    """The bundle as it was built, with a copy of its baseline."""
    baseline = Path(shutil.copy(accepted / "baseline.json", tmp_path / "baseline.json"))
    return Pipeline(tiny_bundle, baseline, accepted / "goldens", Clock(tiny_bundle))


@pytest.fixture
def mutant(tiny_bundle: Path, tmp_path: Path) -> Mutant:
    """A copy of the bundle to change."""
    return Mutant(Path(shutil.copytree(tiny_bundle, tmp_path / "mutant")))


@pytest.fixture
def changed(mutant: Mutant, untouched: Pipeline) -> Pipeline:
    """The pipeline after a change to `mutant`."""
    return Pipeline(mutant.root, untouched.baseline, untouched.goldens, Clock(mutant.root))
