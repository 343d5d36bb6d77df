"""One FP4 linear built by the bundle's backend: operand order, scale layout, rounding, sums."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastwan.config import TARGETS
from fastwan.engines.backend import BuildOptions, BuiltEngine, load_backend
from fastwan.engines.coverage import check_coverage
from fastwan.engines.plan import serialized
from fastwan.engines.source import EngineSource
from fastwan.errors import EnvironmentLacks
from fastwan.export.passes.lower_for_onnxruntime import lower_for_onnxruntime
from fastwan.plugins import nvfp4
from fastwan.progress import Quiet
from fastwan.quality.selftest import probe, rounding
from fastwan.quality.selftest.context import Context, Outcome, Skip, StageFailure
from fastwan.quality.selftest.machine import Probe
from fastwan.quality.selftest.memory import Scratch, to_numpy, to_torch
from fastwan.quality.selftest.report import Figure
from fastwan.quality.verify.executor import MemoryExecutor
from fastwan.schema import Label
from fastwan.tables import lookup

Run = Callable[[Tensor], Tensor]
"""x [K, K] bf16 -> y [K, N] fp32."""

SUMS_LIMIT = 2.0**-8
"""Relative L2 of the sums: rounding them to bf16 once makes 1.7e-3 at most."""


def gemm(context: Context) -> Outcome:
    """Build the linear, run it on the GPU, and find what it took its operands for."""
    built = build_linear(context)
    made = Probe(built, serialized(probe.model()), context.bundle.folder)
    engine = context.machine.linear(context.bundle, made)
    scratch_bytes = engine.scratch_bytes

    def run(x: Tensor) -> Tensor:
        with Scratch(context.device) as scratch:
            bindings = {
                "x": (scratch.put(to_numpy(x)), (probe.K, probe.K)),
                "y": (scratch.space(2 * probe.K * probe.N), (probe.K, probe.N)),
            }
            work = scratch.space(scratch_bytes)
            engine.enqueue(bindings, work, scratch_bytes, scratch.stream)
            found = scratch.get(bindings["y"][0], bindings["y"][1], "bfloat16")
        return to_torch(found).float()

    label: Label = "emulated" if context.machine.kind == "emulated" else "measured"
    return hold(run(probe.unit()), run(probe.ramp()), run, label)


def gemm_on_host(context: Context) -> Outcome:
    """Build the linear, and run its graph on ONNX Runtime: what the GPU will be held against."""
    try:
        built = build_linear(context)
        kernels = f"an engine of {built.plan.nbytes:,} bytes holds it as an FP4 GEMM"
    except EnvironmentLacks as error:
        kernels = f"no engine was built: {error.what}"
    lowered, _ = lower_for_onnxruntime(probe.model())
    executor = MemoryExecutor(lowered, Path(context.bundle.folder))

    def run(x: Tensor) -> Tensor:
        found = executor.run({"x": to_numpy(x.float())})["y"]
        return torch.from_numpy(np.asarray(found, np.float32))

    outcome = hold(run(probe.unit()), run(probe.ramp()), run, "emulated")
    return Outcome(f"{kernels}; on ONNX Runtime: {outcome.note}", outcome.figures)


def build_linear(context: Context) -> BuiltEngine:
    """An engine of `probe.model` for the bundle's target.

    Raises:
        Skip: nothing in the bundle is of the recipe.
        VerificationFailed: the builder made something else than an FP4 GEMM of it.
    """
    manifest = context.bundle.manifest
    formats = {linear.format for each in manifest.engines.values() for linear in each.linears}
    if probe.LINEAR.format not in formats:
        raise Skip("the bundle has no FP4 linear")
    target = lookup(TARGETS, manifest.target)
    model = serialized(probe.model())
    source = EngineSource(probe.NAME, "dit", model, context.bundle.folder, "step", (probe.LINEAR,))
    backend = load_backend(manifest.backend)
    built = backend.build_here(source, BuildOptions(target), Quiet())
    check_coverage(built.layers, [probe.LINEAR]).require(probe.NAME)
    return built


def hold(of_unit: Tensor, of_ramp: Tensor, run: Run, label: Label) -> Outcome:
    """Hold the products of the three inputs to the reference, layout before rounding.

    Args:
        of_unit: y [K, N] fp32 of `probe.unit`.
        of_ramp: of `probe.ramp`.
        run: the linear.

    Raises:
        StageFailure: names the cause where one of `probe.FAULTS` explains the result.
    """
    cause = probe.diagnose(of_unit, of_ramp)
    if cause:
        raise StageFailure(f"the FP4 GEMM reads its operands in another way: {cause}")
    if cause is None:
        raise StageFailure(f"the FP4 GEMM is wrong in an unknown way: {_where(of_unit, of_ramp)}")
    x = rounding.values(probe.K, probe.K)
    y = run(x)
    seen, sums = y[:, : probe.K], y[:, probe.K :]
    judged = rounding.judge(x, seen)
    rows = probe.weight().values()[probe.K :].double() * probe.GLOBAL_SCALE
    expected = seen.double() @ rows.t()
    norm = float(expected.norm())
    difference = float((sums.double() - expected).norm()) / norm if norm else float("inf")
    figures = _figures(judged, difference, label)
    if judged.wrong:
        ulps = "none near" if judged.scale_ulps is None else f"{judged.scale_ulps} ULP away"
        raise StageFailure(
            f"the quantiser rounds {judged.wrong:,} of {judged.blocks:,} blocks otherwise than to "
            f"nearest: values up to {judged.code_steps:g} steps of e2m1 away, scales {ulps}",
            figures,
        )
    if not difference <= SUMS_LIMIT:
        raise StageFailure(
            f"sums of the FP4 GEMM differ by {difference:.3g}, more than {SUMS_LIMIT:.3g}", figures
        )
    return Outcome(
        f"operands as the reference packs them; {judged.equal:,} of {judged.values:,} quantised "
        "values equal" + (", the others on ties" if judged.equal < judged.values else ""),
        figures,
    )


def _figures(judged: rounding.Rounding, difference: float, label: Label) -> tuple[Figure, ...]:
    rows: list[tuple[str, float, str, float | None]] = [
        ("quantised values that are equal", judged.equal / judged.values, "", None),
        ("values rounded to the other side of a tie", judged.code_ties, "values", None),
        ("scales rounded to the other side of a tie", judged.scale_ties, "blocks", None),
        ("blocks that are no rounding to nearest", judged.wrong, "blocks", 0.0),
        ("largest error of such a value", judged.code_steps, "steps of e2m1", None),
        ("relative L2 of the sums", difference, "", SUMS_LIMIT),
    ]
    if judged.scale_ulps is not None:
        rows.insert(-1, ("largest error of such a scale", judged.scale_ulps, "ULP of e4m3", None))
    return tuple(
        Figure(name=name, value=float(value), unit=unit, limit=limit, label=label)
        for name, value, unit, limit in rows
        if np.isfinite(value)
    )


def _where(of_unit: Tensor, of_ramp: Tensor) -> str:
    """How much of the two products is wrong, and the first place."""
    packed = probe.weight()
    said = []
    for name, x, seen in (
        ("a unit activation", probe.unit(), of_unit),
        ("an exact activation", probe.ramp(), of_ramp[:, : probe.K]),
    ):
        quantised = probe.Packed(*nvfp4.quantize_activation(x))
        expected = probe.product(quantised, packed)[:, : seen.shape[1]]
        wrong = (seen != expected).nonzero()
        if len(wrong):
            row, column = map(int, wrong[0])
            said.append(
                f"{len(wrong):,} of {seen.numel():,} products of {name}, first "
                f"{float(seen[row, column]):g} in place of {float(expected[row, column]):g} at row "
                f"{row}, column {column}"
            )
    return "; ".join(said)
