"""What GPUs can do: the dated table that kernels are priced against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class GpuRates:
    """Peaks and measured kernel rates of one GPU.

    Attributes:
        date: when the figures were taken.
        source: where they are from.
        bytes_per_second: memory bandwidth.
        flops: dense peak of matrix arithmetic, operations a second by operand dtype of the
            layer records.
        attention: measured rate of an attention kernel, operations a second, by attention mode;
            ``native`` is what the builder's own attention is priced at.
        launch_seconds: cost of a kernel inside a CUDA graph beyond its work; an assumption.
    """

    name: str
    date: str
    source: str
    bytes_per_second: float
    flops: Mapping[str, float]
    attention: Mapping[str, float]
    launch_seconds: float

    def matrix_rate(self, dtype: str) -> float:
        """Dense peak for operands of `dtype`; the 16-bit one where the table has no entry."""
        return self.flops.get(dtype, self.flops["BFloat16"])


GPUS: dict[str, GpuRates] = {
    rates.name: rates
    for rates in (
        GpuRates(
            name="rtx5090",
            date="2026-08-21",
            source="GB202 data sheet; attention at 32k tokens, head 128, as published",
            bytes_per_second=1.79e12,
            flops={"FP4E2M1": 1676e12, "BFloat16": 209e12, "Half": 209e12},
            attention={"sage3": 760e12, "native": 214e12},
            launch_seconds=2e-6,
        ),
    )
}
"""By target name. A target without a row gets bytes and operations, but no time."""

PUBLISHED_STEP_SECONDS = 0.50
"""A denoising step of FastWan-QAD-1.3B at 832x480x81 on an RTX 5090, as published."""

PUBLISHED_VIDEO_SECONDS = 1.78
"""The whole video, as published: text, three steps, latents to host, decode, frames to host."""
