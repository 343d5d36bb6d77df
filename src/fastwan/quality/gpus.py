"""What GPUs can do: the dated table that kernels are priced against."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class GpuRates:
    """Peaks and measured kernel rates of one GPU; NaN where a rate is not known.

    Attributes:
        date: when the figures were taken.
        source: where they are from.
        sms: streaming multiprocessors; 0 where not known.
        memory_bytes: of the card; 0 where not known.
        bytes_per_second: memory bandwidth.
        host_bytes_per_second: peak of the bus between pinned host memory and the GPU, one way.
        flops: dense peak of matrix arithmetic, operations a second by operand dtype of the
            layer records.
        attention: rate of an attention kernel, operations a second, by attention mode; the
            builder's own is priced at ``native``, with FP8 operands at ``fp8``.
        launch_seconds: cost of a kernel inside a CUDA graph beyond its work; an assumption.
        sober: the same in place of peaks with what kernels have been published to attain.
    """

    name: str = ""
    date: str = ""
    source: str = ""
    sms: int = 0
    memory_bytes: int = 0
    bytes_per_second: float = math.nan
    host_bytes_per_second: float = math.nan
    flops: Mapping[str, float] = field(default_factory=dict)
    attention: Mapping[str, float] = field(default_factory=dict)
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
            sms=170,
            memory_bytes=32 << 30,
            bytes_per_second=1.79e12,
            host_bytes_per_second=63e9,
            flops={"FP4E2M1": 1676e12, "FP8": 419e12, "BFloat16": 209e12, "Half": 209e12},
            attention={"sage3": 760e12, "sage2": 643e12, "native": 214e12, "fp8": 419e12},
            launch_seconds=2e-6,
            sober=GpuRates(
                name="rtx5090",
                sms=170,
                date="2026-11-26",
                source=(
                    "memory: the best of 1.25 to 1.45 TB/s published for norms larger than the L2 "
                    "cache; FP4 GEMMs: between 956 and 1,310 TFLOPS published for cubes of 2,048 "
                    "and 4,096; FP4 attention: its published rate, its last wave divided; 16-bit "
                    "and FP8 GEMMs, FP8 attention and convolutions: 80 % of the peak, an assumption"
                ),
                bytes_per_second=1.45e12,
                host_bytes_per_second=63e9,
                flops={"FP4E2M1": 1100e12, "FP8": 335e12, "BFloat16": 167e12, "Half": 167e12},
                attention={"sage3": 760e12, "sage2": 643e12, "native": 214e12, "fp8": 335e12},
                launch_seconds=2e-6,
            ),
        ),
        GpuRates(
            name="rtx4090",
            date="2026-11-27",
            source=(
                "published specifications (128 SMs, 2.52 GHz, 1,008 GB/s); FP8 with fp32 "
                "accumulation; PCIe 4.0 x16; attention: FlashAttention-2 and SageAttention2++ at "
                "32k tokens, head 128, published, and the peak of FP8, which nobody measured for "
                "the builder's kernel"
            ),
            sms=128,
            memory_bytes=24 << 30,
            bytes_per_second=1.008e12,
            host_bytes_per_second=31.5e9,
            flops={"FP8": 330.3e12, "BFloat16": 165.2e12, "Half": 165.2e12},
            attention={"sage2": 493e12, "native": 164e12, "fp8": 330.3e12},
            launch_seconds=2e-6,
            sober=GpuRates(
                name="rtx4090",
                sms=128,
                date="2026-11-27",
                source=(
                    "16-bit GEMMs: 158.5 of 165.2 TFLOPS measured by a user of torch 2.7 for cubes "
                    "of 10,240 (zzc0721/torch-performance-test-data issue 78); FP8 GEMMs: the same "
                    "share; FP8 attention: the share of the 16-bit peak that FlashAttention-2 is "
                    "published to attain, 164 of 165.2, both assumptions; memory: copies and "
                    "reads that users measured at 918 to 924 GB/s "
                    "(tinygrad/open-gpu-kernel-modules issue 6, krrishnarraj/clpeak issue 106)"
                ),
                bytes_per_second=0.92e12,
                host_bytes_per_second=31.5e9,
                flops={"FP8": 317e12, "BFloat16": 158.5e12, "Half": 158.5e12},
                attention={"sage2": 493e12, "native": 164e12, "fp8": 327.9e12},
                launch_seconds=2e-6,
            ),
        ),
        GpuRates(
            name="rtx4080",
            date="2026-11-27",
            source=(
                "published specifications (76 SMs, 16 GB); bandwidth and peaks scaled from the "
                "RTX 4090's row by SMs and clock (2.505 GHz), and from 22.4 Gbit/s on 256 bits; "
                "attention likewise; no rate was looked up"
            ),
            sms=76,
            memory_bytes=16 << 30,
            bytes_per_second=0.7168e12,
            host_bytes_per_second=31.5e9,
            flops={"FP8": 194.9e12, "BFloat16": 97.5e12, "Half": 97.5e12},
            attention={"sage2": 291e12, "native": 96.8e12, "fp8": 194.9e12},
            launch_seconds=2e-6,
        ),
        GpuRates(
            name="rtx6000ada",
            date="2026-11-27",
            source=(
                "18,176 cores are 142 SMs; 48 GB; NVIDIA's data sheet from memory: 960 GB/s, 728.5 "
                "TFLOPS of dense FP8, half that in 16 bits; not looked up. No attention was "
                "measured there"
            ),
            sms=142,
            memory_bytes=48 << 30,
            bytes_per_second=0.96e12,
            host_bytes_per_second=31.5e9,
            flops={"FP8": 728.5e12, "BFloat16": 364.2e12, "Half": 364.2e12},
            launch_seconds=2e-6,
        ),
        GpuRates(
            name="rtx5080",
            date="2026-11-27",
            source=(
                "published specifications (84 SMs, 2.62 GHz, 960 GB/s, 1,801 TOPS of sparse FP4); "
                "dense FP4 is half of that, other peaks and attention are the RTX 5090's row in "
                "the same proportion"
            ),
            sms=84,
            memory_bytes=16 << 30,
            bytes_per_second=0.96e12,
            host_bytes_per_second=63e9,
            flops={"FP4E2M1": 900e12, "FP8": 225e12, "BFloat16": 112e12, "Half": 112e12},
            attention={"sage3": 408e12, "sage2": 345e12, "native": 115e12, "fp8": 225e12},
            launch_seconds=2e-6,
        ),
        GpuRates(
            name="rtxpro6000",
            date="2026-11-27",
            source=(
                "published specifications (188 SMs, 96 GB, 1,792 GB/s, dense FP4, FP8 with fp32 "
                "accumulation and 16-bit peaks). No attention was measured there"
            ),
            sms=188,
            memory_bytes=96 << 30,
            bytes_per_second=1.792e12,
            host_bytes_per_second=63e9,
            flops={"FP4E2M1": 2015e12, "FP8": 1007e12, "BFloat16": 503.8e12, "Half": 503.8e12},
            launch_seconds=2e-6,
        ),
        GpuRates(
            name="gb10",
            date="2026-11-27",
            source=(
                "6,144 cores are 48 SMs; 128 GB shared with the CPU, 273 GB/s; half of 1,000 TOPS "
                "of sparse FP4. Other peaks, the way to the host and attention are not known"
            ),
            sms=48,
            memory_bytes=128 << 30,
            bytes_per_second=0.273e12,
            flops={"FP4E2M1": 500e12},
            launch_seconds=2e-6,
        ),
    )
}
"""By target name."""


def rates_of(target: str) -> GpuRates:
    """Row of a target; `UNKNOWN` where the table has none."""
    return GPUS.get(target, UNKNOWN)


PUBLISHED_MODEL = "FastWan-QAD-1.3B"

PUBLISHED_STEP_SECONDS = 0.50
"""A denoising step of that model at 832x480x81 on an RTX 5090, as published."""

PUBLISHED_VIDEO_SECONDS = 1.78
"""The whole video, as published: text, three steps, latents to host, decode, frames to host."""
