"""What GPUs can do: the dated table that kernels are priced against."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from fastwan.config import TARGETS


@dataclass(frozen=True)
class GpuRates:
    """Peaks and measured kernel rates of one GPU; NaN where a rate is not known.

    Attributes:
        date: when the figures were taken.
        source: where they are from.
        bytes_per_second: memory bandwidth.
        host_bytes_per_second: peak of the bus between pinned host memory and the GPU, one way.
        flops: dense peak of matrix arithmetic, operations a second by operand dtype of the
            layer records.
        attention: measured rate of an attention kernel, operations a second, by attention mode;
            ``native`` is what the builder's own attention is priced at.
        processors: multiprocessors, for kernels whose schedule depends on them; 0 where not known.
        launch_seconds: cost of a kernel inside a CUDA graph beyond its work; an assumption.
        sober: the same in place of peaks with what kernels have been published to attain.
    """

    name: str = ""
    date: str = ""
    source: str = ""
    bytes_per_second: float = math.nan
    host_bytes_per_second: float = math.nan
    flops: Mapping[str, float] = field(default_factory=dict)
    attention: Mapping[str, float] = field(default_factory=dict)
    processors: int = 0
    launch_seconds: float = math.nan
    sober: GpuRates | None = None

    def matrix_rate(self, dtype: str) -> float:
        """Dense peak for operands of `dtype`; the 16-bit one where the table has no entry."""
        return self.flops.get(dtype, self.flops.get("BFloat16", math.nan))

    def attention_rate(self, mode: str) -> float:
        """Rate of the attention kernel of a mode."""
        return self.attention.get(mode, math.nan)


UNKNOWN = GpuRates()
"""Prices every kernel at NaN seconds: bytes and operations are known, times are not."""


GPUS: dict[str, GpuRates] = {
    rates.name: rates
    for rates in (
        GpuRates(
            name="rtx5090",
            date="2026-08-21",
            source="GB202 data sheet; PCIe 5.0 x16; attention at 32k tokens, head 128, published",
            bytes_per_second=1.79e12,
            host_bytes_per_second=63e9,
            flops={"FP4E2M1": 1676e12, "BFloat16": 209e12, "Half": 209e12},
            attention={"sage3": 760e12, "native": 214e12},
            processors=TARGETS["rtx5090"].processors,
            launch_seconds=2e-6,
            sober=GpuRates(
                name="rtx5090",
                date="2026-11-26",
                source=(
                    "memory: the best of 1.25 to 1.45 TB/s published for norms larger than the L2 "
                    "cache; FP4 GEMMs: between 956 and 1,310 TFLOPS published for cubes of 2,048 "
                    "and 4,096; FP4 attention: its published rate, its last wave divided; 16-bit "
                    "GEMMs and convolutions: 80 % of the peak, an assumption"
                ),
                bytes_per_second=1.45e12,
                host_bytes_per_second=63e9,
                flops={"FP4E2M1": 1100e12, "BFloat16": 167e12, "Half": 167e12},
                attention={"sage3": 760e12, "native": 214e12},
                processors=TARGETS["rtx5090"].processors,
                launch_seconds=2e-6,
            ),
        ),
    )
}
"""By target name."""


def rates_of(target: str) -> GpuRates:
    """Row of a target; `UNKNOWN` where the table has none."""
    return GPUS.get(target, UNKNOWN)


PUBLISHED_STEP_SECONDS = 0.50
"""A denoising step of FastWan-QAD-1.3B at 832x480x81 on an RTX 5090, as published."""

PUBLISHED_VIDEO_SECONDS = 1.78
"""The whole video, as published: text, three steps, latents to host, decode, frames to host."""
