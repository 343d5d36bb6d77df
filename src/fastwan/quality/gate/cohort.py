"""What figures depend on: a baseline counts only for bundles and machines of its own cohort."""

from __future__ import annotations

from collections.abc import Mapping

from fastwan.quality.bench_report import BenchReport
from fastwan.quality.gpus import rates_of
from fastwan.schema import BundleFacts
from fastwan.shapes import shape_text

_OWN_VERSION = "fastwan-export"
"""The tool's version is what a gate tests, and no part of a cohort."""


def bundle_cohort(facts: BundleFacts) -> dict[str, str]:
    """Cohort of a bundle: everything that reports say of it but its path and the tool's version."""
    fields = facts.model_dump(exclude={"path", "shape", "versions"})
    versions = {name: text for name, text in facts.versions.items() if name != _OWN_VERSION}
    return {
        **{name: str(value) for name, value in fields.items()},
        "shape": shape_text(facts.shape),
        "builder": ", ".join(f"{name} {text}" for name, text in sorted(versions.items())),
    }


def rates_cohort(target: str) -> dict[str, str]:
    """Cohort of predicted times: the table of rates that they were computed from."""
    rates = rates_of(target)
    return {"rates": f"{rates.name} {rates.date}".strip()}


def gpu_cohort(report: BenchReport) -> dict[str, str]:
    """Cohort of measured times but for the clocks, which are held within a limit."""
    assert report.measurement is not None
    states = [state for state in report.measurement.gpu_states if state is not None]
    drivers = sorted({state.driver for state in states if state.driver is not None})
    return {
        "device": "emulated" if report.measurement.emulated else "cuda",
        "gpu": report.device,
        "driver": ", ".join(drivers) or "unknown",
        "cuda": report.measurement.driver_cuda,
    }


def differing(baseline: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """What differs between two cohorts, in words by key; empty where they are one."""
    return {
        key: f"baseline {baseline.get(key, 'without it')}, this run {now.get(key, 'without it')}"
        for key in sorted(baseline.keys() | now.keys())
        if baseline.get(key) != now.get(key)
    }
