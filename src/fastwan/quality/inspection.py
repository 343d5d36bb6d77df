"""What ``inspect`` and ``build-engine`` print, as models."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import Field

from fastwan.manifest import Cadence
from fastwan.quality.cost import Cost
from fastwan.runtime.recording.memory_plan import DeviceBytes
from fastwan.schema import BundleFacts, FigureReport, Measured, Predicted, Record


class Figures(Record):
    """What some kernels cost in one run."""

    kernels: Measured[int]
    """By the builder's records."""
    bytes_moved: Predicted[int]
    """Everything read and written in device memory, weights included."""
    memory_bound_bytes: Predicted[int]
    """The part of what has no matrix arithmetic."""
    flops: Predicted[int]
    """Operations of GEMMs, attentions and convolutions, two a multiply-add."""
    predicted_ms: Predicted[float | None]
    """Null where no rates of the target are known."""
    floor_ms: Predicted[float | None]
    """The matrix arithmetic alone; null likewise."""

    @classmethod
    def of(cls, cost: Cost, **more: Any) -> Self:
        """Figures of a cost, and the fields that a subclass adds."""
        return cls(
            kernels=cost.kernels,
            bytes_moved=cost.bytes_moved,
            memory_bound_bytes=cost.memory_bound_bytes,
            flops=cost.flops,
            predicted_ms=milliseconds(cost.seconds),
            floor_ms=milliseconds(cost.floor_seconds),
            **more,
        )


class StageFigures(Figures):
    """A stage of a video: all its operations."""

    enqueues: Measured[int]
    """Engines, regions, sums, casts, copies and memsets."""


class EngineFigures(Figures):
    """One run of an engine; of the text encoder's with a prompt of the usual length."""

    component: str
    runs: Cadence
    """How often it runs."""


class FallbackFigures(Figures):
    """One run of an engine that can be played in place of a node between engines."""

    kind: str
    """Of the node."""
    bytes: Measured[int]
    """Of its file."""
    scratch_bytes: Measured[int]
    nodes: Measured[int]
    """Of a step, that it would be played for."""
    node_ms: Predicted[float | None]
    """What is played otherwise, for each of them."""


class BuiltComponent(Record):
    """What was built of a component."""

    files: Measured[int]
    bytes: Measured[int]
    """Of its engines and what lies beside them."""
    linears: Measured[int]
    """Targeted linears of the checkpoint; none where the recipe does not quantise them."""
    quantised_linears: Measured[int]
    """Those of them that are GEMMs in the format of their recipe."""
    kernels: Measured[int]
    """Of all its engines, by the builder's records; of one optimization profile."""
    scratch_bytes: Measured[int]
    """The largest of its engines'; they share it."""


class ComponentFigures(BuiltComponent):
    """What is inside the engines of a component, and what they cost."""

    kinds: Measured[dict[str, int]]
    """Kernels by what bounds them."""
    dtypes: Measured[dict[str, int]]
    """Kernels by the number format they compute in."""
    regions: Measured[dict[str, int]]
    """Nodes that the runtime launches between its engines, by type."""
    quantised_gemm_share: Measured[float]
    """GEMMs in the format of a recipe among all GEMMs, 0 to 1."""
    weight_bytes: Measured[int]
    """Constants that its kernels read, and weights that its engines are given."""
    per_run: Figures
    """Engines and regions of one denoising step, one latent frame or one prompt; no casts."""
    per_prompt: Figures | None
    """What runs once a prompt beside that."""
    per_timestep: Figures | None
    """What loading computes for each timestep of the schedule."""


class Prediction(Record):
    """What a video is predicted to take."""

    gpu: str | None
    """Row of the table of rates; null where the target has none, and all times with it."""
    rates_date: str | None
    """When the rates were taken."""
    stages: dict[str, StageFigures]
    """Of the recorded video, in order; ``tables`` is computed at loading."""
    step_ms: Predicted[float | None]
    """Mean over the denoising steps."""
    step_floor_ms: Predicted[float | None]
    video_ms: Predicted[float | None]
    """All stages but ``tables``."""
    video_floor_ms: Predicted[float | None]
    sober_rates: str | None
    """Where the rates are from that kernels have been published to attain; null without any."""
    sober_step_ms: Predicted[float | None]
    """The mean step at those rates in place of the peaks."""
    sober_video_ms: Predicted[float | None]
    published_step_ms: float | None
    """FastVideo's own figure through PyTorch, at the published shape; null at another."""
    published_video_ms: float | None
    covers: str
    """What a video is here."""


class InspectReport(FigureReport):
    """What a bundle holds and what it costs; no figure was taken on a GPU."""

    kind: Literal["inspect"] = "inspect"
    schema_version: Literal[3] = 3
    bundle: BundleFacts
    seconds: Measured[float]
    """The build's."""
    peak_rss_bytes: Measured[int]
    """Resident memory of the build at its peak."""
    components: dict[str, ComponentFigures]
    engines: dict[str, EngineFigures]
    regions: dict[str, Figures]
    """What the runtime launches between engines."""
    fallbacks: dict[str, FallbackFigures]
    """What it plays in place of nodes whose kernels do not agree with it on a GPU; in no other
    figure but the files of the transformer."""
    device_bytes: Predicted[DeviceBytes | None]
    """What the runtime allocates for a video; null where the bundle cannot make one."""
    prediction: Prediction | None
    """Null where the bundle cannot make a video."""
    note: str
    """Why the bundle cannot make a video; empty where it can."""
    shapes: Measured[dict[str, int]] = Field(default_factory=dict)
    """Of a bundle with several shapes, by shape: bytes of the files that no other one reads. The
    shape that the report is of is the first; empty where the bundle has only that."""


class BuildReport(FigureReport):
    """What a build made and took."""

    kind: Literal["build-engine"] = "build-engine"
    schema_version: Literal[3] = 3
    bundle: BundleFacts
    seconds: Measured[float]
    peak_rss_bytes: Measured[int]
    stages: Measured[dict[str, float]]
    """Seconds by stage of the build."""
    cached: tuple[str, ...]
    """Engines that were taken from the cache."""
    components: dict[str, BuiltComponent]
    shapes: Measured[dict[str, int]] = Field(default_factory=dict)
    """Of a bundle with several shapes, by shape: bytes of the files that no other one reads."""


class SwapReport(FigureReport):
    """What an exchange of weights made and took."""

    kind: Literal["swap-weights"] = "swap-weights"
    schema_version: Literal[1] = 1
    bundle: BundleFacts
    seconds: Measured[float]
    peak_rss_bytes: Measured[int]
    stages: Measured[dict[str, float]]
    """Seconds by stage."""
    taken: tuple[str, ...]
    """Plans and engines that were taken as they were, from the bundle or the cache."""
    given: Measured[int]
    """Engines that are given their weights."""


def milliseconds(seconds: float) -> float | None:
    """A time of `Cost` as a report has it; None for NaN."""
    return None if math.isnan(seconds) else seconds * 1e3
