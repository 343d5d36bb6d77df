"""What ``bench`` prints, as models and as lines for a terminal."""

from __future__ import annotations

from typing import Literal

from pydantic import computed_field

from fastwan.quality.gpu_state import Environment, GpuState
from fastwan.runtime.device.kernel_choice import KernelChoice
from fastwan.runtime.device.self_check import SelfCheck
from fastwan.runtime.recording.memory_plan import DeviceBytes
from fastwan.schema import (
    BundleFacts,
    Count,
    Duration,
    FigureReport,
    Label,
    Measured,
    Predicted,
    Record,
    labels_of,
)


class StageTimes(Record):
    """Times of a stage over the measured videos, in milliseconds."""

    min_ms: Duration
    median_ms: Duration
    p95_ms: Duration
    """95th percentile, nearest rank."""


class Measurement(Record):
    """Videos that were timed on a GPU."""

    compute_capability: int
    """10 major + minor."""
    driver_cuda: str
    """Version of the driver's CUDA."""
    prompt: str
    runs: Count
    warmup: Count
    """Videos before them that were not measured."""
    times: Measured[dict[str, StageTimes]]
    """By stage; ``total`` is a whole video, see `covers`."""
    load_seconds: Measured[Duration]
    """Of a start that is not the first on this GPU, which compiles and compares kernels."""
    runtime_cache: str
    """Whether kernels that were compiled before were used."""
    checked: SelfCheck | None
    """How kernels between GEMMs agreed with the builder's when the bundle was first loaded on this
    GPU, and which were not played for that; null where nothing was compared."""
    kernel_choices: tuple[KernelChoice, ...]
    """Of the regions that the plugin library has several kernels for."""
    memory_peak_bytes: Measured[Count]
    """Device memory that was taken at most, by the device's own account."""
    gpu_states: Measured[tuple[GpuState | None, ...]]
    """Before the first video and after each; null where NVML cannot be asked."""
    eager_reason: str
    """Why videos were enqueued call by call; empty where they were graphs."""
    emulated: bool = False
    """Whether it was a Hopper GPU in place of the target; its times say nothing of that."""


class BenchReport(FigureReport):
    """Exact counts of one video, and times where a GPU was used."""

    kind: Literal["bench"] = "bench"
    schema_version: Literal[2] = 2
    bundle: BundleFacts
    sampler: str
    """The one that was used."""
    device: str
    """Name of the GPU that was timed; ``null`` for the recording device."""
    note: str
    """Why there are no times, or what they are of."""
    graph_launches: Measured[Count]
    enqueues: Measured[Count]
    """Of one video's launch, see `enqueues_by_kind`."""
    enqueues_by_kind: Measured[dict[str, Count]]
    kernels: Measured[Count | None]
    """Behind these enqueues, by the builder's records; null for a bundle without them."""
    allocations_in_loop: Measured[Count]
    """Between the launch and the wait for its end."""
    host_syncs_in_loop: Measured[Count]
    """Waits of the host before that one."""
    bytes_to_host: Measured[Count]
    bytes_to_device: Measured[Count]
    device_bytes: Predicted[DeviceBytes]
    unshared_arena_bytes: Predicted[Count]
    """What the arena's tensors would take side by side."""
    races: Measured[Count]
    """Accesses to the same bytes that nothing puts in order."""
    covers: str
    """What ``total`` and the counts are of."""
    measurement: Measurement | None
    environment: Environment

    @computed_field  # type: ignore[prop-decorator]
    @property
    def labels(self) -> dict[str, Label]:
        """See `FigureReport.labels`; what was measured of an emulation is ``emulated``."""
        known = dict(labels_of(type(self)))
        if self.measurement is not None and self.measurement.emulated:
            known |= dict.fromkeys(_OF_EMULATION, "emulated")
        return known


_OF_EMULATION = (
    "measurement.times", "measurement.load_seconds", "measurement.memory_peak_bytes",
)  # fmt: skip


def render(report: BenchReport) -> str:
    """A report as lines for a terminal."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in report.enqueues_by_kind.items())
    lines = [
        f"{report.bundle.path}: {report.device}, sampler {report.sampler}",
        f"one video: {report.graph_launches} graph launch, {report.enqueues} enqueues "
        f"({kinds}), {report.allocations_in_loop} allocations, "
        f"{report.host_syncs_in_loop} waits in the loop, {report.races} races",
        f"device memory (predicted): {report.device_bytes.total / 1e6:,.1f} MB; "
        f"to the host: {report.bytes_to_host / 1e6:,.1f} MB",
    ]
    if report.measurement is None:
        return "\n".join([*lines, report.note])
    label = report.labels["measurement.times"]
    for stage, times in report.measurement.times.items():
        lines.append(
            f"{stage:>10}: median {times.median_ms:.2f} ms, min {times.min_ms:.2f}, "
            f"p95 {times.p95_ms:.2f} ({label})"
        )
    checked = report.measurement.checked
    if checked is not None:
        lines.append(checked.played)
    lines += map(str, report.measurement.kernel_choices)
    return "\n".join([*lines, f"total covers {report.covers}", *filter(None, [report.note])])
