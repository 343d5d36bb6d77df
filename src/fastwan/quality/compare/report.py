"""What ``compare`` says of two bundles, as models."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BeforeValidator, computed_field

from fastwan.quality.findings import Finding, exit_code_of
from fastwan.quality.inspection import ComponentFigures
from fastwan.schema import BundleFacts, Emulated, FigureReport, Measured, Predicted, Record

Status = Literal["same", "changed", "fused differently", "gone", "added"]
"""``changed``: as many kernels, of another kind, number format, size or arithmetic. ``fused
differently``: other numbers of kernels for the same nodes. ``gone``, ``added``: in the first, in
the second bundle alone."""

Pair = tuple[Predicted[int | None], Predicted[int | None]]
"""Of the first and of the second bundle; null where it has no such thing."""


def _finite(figure: float | None) -> float | None:
    return figure if figure is not None and math.isfinite(figure) else None


Difference = Annotated[float | None, BeforeValidator(_finite)]
"""Relative L2 difference |a - b| / |a|; null where it means nothing."""


class KernelFact(Record):
    """A kernel of one of the bundles."""

    name: str
    place: str
    """Engine or region that it belongs to."""
    kind: str
    dtype: str
    """Number format that it computes in."""
    bytes_moved: Predicted[int]
    predicted_ms: Predicted[float | None]


class KernelGroup(Record):
    """Kernels of both bundles that compute the same nodes of the exported graph."""

    status: Status
    component: str
    block: int | None
    """Of the transformer; null outside of its blocks."""
    nodes: tuple[str, ...]
    """ONNX nodes, linears first."""
    a: tuple[KernelFact, ...]
    b: tuple[KernelFact, ...]


class ComponentChange(Record):
    """A component in both bundles."""

    engines: Measured[tuple[int, int]]
    a: ComponentFigures | None
    """Null where the bundle lacks the component."""
    b: ComponentFigures | None


class StaticComparison(Record):
    """What the engines are made of."""

    components: dict[str, ComponentChange]
    counts: Measured[dict[str, int]]
    """Groups of kernels by status."""
    groups: tuple[KernelGroup, ...]
    """All but the ``same``."""
    block_bytes: Predicted[tuple[tuple[int | None, int | None], ...]]
    """Bytes that each block of the transformer moves in a denoising step, in both bundles."""


class StepDifference(Record):
    """A denoising step of one video."""

    prompt: int
    """Index of the prompt."""
    seed: int
    step: int
    timestep: int
    velocity: Emulated[Difference]
    """Of the velocities for the same latents, those of the first bundle."""
    largest: Emulated[float | None]
    """Largest difference of an element of the velocities."""
    drift: Emulated[Difference]
    """Of the latents after the step, each bundle on its own way from the same noise."""


class FrameDifference(Record):
    """The frames of one video, each bundle on its own way from the same noise."""

    prompt: int
    seed: int
    frames: int
    psnr: Emulated[float | None]
    """Peak signal-to-noise ratio in dB; null where the frames are equal."""
    ssim: Emulated[float | None]
    """Mean structural similarity, Wang et al. 2004."""
    lpips: Emulated[float | None]
    """Learned perceptual distance, Zhang et al. 2018, of AlexNet; null where the package ``lpips``
    is not installed or does not load."""
    largest: Emulated[int]
    """Largest difference in levels of 0 to 255."""
    worst_frame: Emulated[int]
    """The frame with the largest mean square error."""


class BlockDifference(Record):
    """A block of the transformer in the first step of the first video."""

    block: int
    drift: Emulated[Difference]
    """Of the hidden states behind the block, each bundle from the latents on."""
    own: Emulated[Difference]
    """Of what this block alone adds: both bundles' block on the first one's hidden states, over the
    change that the block makes; null where the device cannot tell."""


class TensorDifference(Record):
    """A tensor of both graphs inside a block."""

    name: str
    difference: Emulated[Difference]
    largest: Emulated[float | None]


class NumericComparison(Record):
    """The same prompts and seeds through both bundles."""

    device: str
    sampler: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    shape: str
    """Of the videos, in words."""
    text: Emulated[tuple[Difference, ...]]
    """Of the prompts' embeddings, each by its bundle's own text encoder; 0 where random embeddings
    stand in for one."""
    steps: tuple[StepDifference, ...]
    frames: tuple[FrameDifference, ...]
    """None where a bundle lacks the decoder."""
    blocks: tuple[BlockDifference, ...] = ()
    """Of ``--by-block``."""
    first_block: int | None = None
    """The first one whose drift is beyond the limit; null without any."""
    tensors: tuple[TensorDifference, ...] = ()
    """Of that block, in the order in which they are computed."""
    first_tensor: str = ""
    """The first of them beyond the limit."""


class CompareReport(FigureReport):
    """Two bundles side by side."""

    kind: Literal["compare"] = "compare"
    schema_version: Literal[1] = 1
    a: BundleFacts
    b: BundleFacts
    limit: float | None
    """Largest relative L2 difference of a step that is good; null where nothing was asked for."""
    static: StaticComparison
    numeric: NumericComparison | None
    """Null where only the static facts were asked for."""
    findings: tuple[Finding, ...] = ()
    """Of the limit; without one nothing is judged."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def passed(self) -> bool:
        """Whether no difference is beyond the limit."""
        return not self.findings or exit_code_of(self.findings) == 0
