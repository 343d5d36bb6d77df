"""Pages of all commands, over the tiny bundles and over reports by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastwan.bundle import open_bundle
from fastwan.quality.compare.report import (
    BlockDifference,
    CompareReport,
    FrameDifference,
    NumericComparison,
    StepDifference,
    TensorDifference,
)
from fastwan.quality.compare.run import judged
from fastwan.quality.compare.static import Side, compare_static
from fastwan.quality.findings import Finding, GateReport, Verdict
from fastwan.quality.gate.history import HistoryRecord
from fastwan.quality.kernels import bundle_kernels
from fastwan.quality.pages.compare_page import compare_page
from fastwan.quality.pages.document import Document
from fastwan.quality.pages.gate_page import gate_page
from fastwan.quality.pages.graph import graph_page
from fastwan.quality.pages.inspect_page import inspect_page
from fastwan.quality.pages.verify_page import verify_page
from fastwan.quality.report import inspect_bundle
from fastwan.quality.verify.report import (
    BlockFigure,
    Check,
    FP4Comparison,
    StepFigure,
    VerifyReport,
)
from fastwan.schema import BundleFacts

RANDOM = np.random.default_rng(5)
VIDEO = RANDOM.integers(0, 256, (9, 96, 160, 3), np.uint8)
MOVED = np.clip(VIDEO.astype(int) + RANDOM.integers(-20, 21, VIDEO.shape), 0, 255).astype(np.uint8)


@pytest.fixture
def videos() -> list[np.ndarray]:
    """Frames without FP4 and with it."""
    return [VIDEO, MOVED]


def verify_report(facts: BundleFacts, *, value: float = 0.1) -> VerifyReport:
    """A report with checks, one of them with this value and the limit 0.2."""
    checks = (
        Check(name="integrity", metric="files that differ", value=0.0, limit=0.0),
        Check(name="step_0", metric="difference", value=value, limit=0.2, label="emulated"),
        Check(name="frames", metric="levels", value=0.5, limit=2.0, note="a <note> & more"),
    )
    fp4 = FP4Comparison(
        blocks=tuple(BlockFigure(block=i, to_module=0.01, fp4=0.2 + i / 100) for i in range(30)),
        steps=tuple(
            StepFigure(step=i, timestep=999 - 300 * i, to_module=0.02, fp4=0.3) for i in range(3)
        ),
        psnr=31.5,
        ssim=0.93,
    )
    return VerifyReport(bundle=facts, checks=checks, fp4=fp4, unchecked=("times",))


def numeric() -> NumericComparison:
    """Numbers of two bundles that part in block 1."""
    return NumericComparison(
        device="cpu", sampler="unipc", prompts=("a fox",), seeds=(1024,), shape="96x160x9",
        text=(0.0,),
        steps=tuple(
            StepDifference(
                prompt=0, seed=1024, step=i, timestep=999 - 300 * i, velocity=0.15,
                largest=0.8, drift=0.02 * (i + 1),
            )
            for i in range(3)
        ),
        frames=(
            FrameDifference(
                prompt=0, seed=1024, frames=9, psnr=34.0, ssim=0.98, lpips=None, largest=20,
                worst_frame=3,
            ),
        ),
        blocks=tuple(BlockDifference(block=i, drift=0.1 * i, own=0.2) for i in range(4)),
        first_block=1,
        tensors=tuple(
            TensorDifference(name=f"blocks.1.add_{i}", difference=0.02 * i, largest=0.1)
            for i in range(20)
        ),
        first_tensor="blocks.1.add_4",
    )  # fmt: skip


def gate_report(facts: BundleFacts) -> tuple[GateReport, list[HistoryRecord]]:
    """A gate with one figure worse and one better, and a history of its cohort and of another."""

    def found(check: str, verdict: Verdict, value: float, baseline: float) -> Finding:
        return Finding(
            stage="predicted", check=check, verdict=verdict, value=value, baseline=baseline,
            limit=baseline, unit="ms", label="predicted",
        )  # fmt: skip

    cohort = {"target": "rtx5090"}
    report = GateReport(
        bundle=facts, baseline="baseline.json", stages=("predicted", "verify"), cohort=cohort,
        findings=(
            found("step", "worse", 0.12, 0.1), found("decode", "improved", 0.3, 0.4),
            found("text", "passed", 0.1, 0.1),
            Finding(stage="verify", check="step_0", verdict="passed", value=0.1, limit=0.2),
        ),
        rewrite="fastwan-export gate bundle --update-baseline",
    )  # fmt: skip
    history = [
        HistoryRecord(
            time=f"2026-11-{day:02}T10:00:00Z", tool="0.1.0",
            cohort={"target": "rtx5090" if day % 4 else "rtx4090", "gpu": "x"}, clocks={},
            passed=True,
            figures={
                "loading": 9000.0, "memory_peak_bytes": 10**9, "step_0": 400.0,
                "total": 1200.0 + day,
            },
        )
        for day in range(1, 29)
    ]  # fmt: skip
    return report, history


@pytest.fixture(scope="session")
def documents(tiny_bundle: Path, lifted_bundle: Path) -> dict[str, tuple[Document, Any]]:
    """A page and the report that it shows, by name."""
    bundle = open_bundle(tiny_bundle)
    kernels = bundle_kernels(bundle)
    inspected = inspect_bundle(bundle)
    facts = BundleFacts.of(bundle)
    sides = tuple(Side.of(open_bundle(path)) for path in (tiny_bundle, lifted_bundle))
    figures = numeric()
    compared = CompareReport(
        a=facts, b=facts, limit=0.12, static=compare_static(*sides), numeric=figures,
        findings=judged(figures, 0.12),
    )  # fmt: skip
    both = (sides[0].kernels, sides[1].kernels)
    verified, failed = verify_report(facts), verify_report(facts, value=0.3)
    gated, history = gate_report(facts)
    return {
        "gate": (gate_page(gated, history, kernels), gated),
        "inspect": (inspect_page(inspected, kernels), inspected),
        "graph": (graph_page(facts, kernels, 1), inspected),
        "compare": (compare_page(compared, both, (VIDEO, MOVED)), compared),
        "verify": (verify_page(verified, (VIDEO, MOVED)), verified),
        "verify-failed": (verify_page(failed), failed),
    }
