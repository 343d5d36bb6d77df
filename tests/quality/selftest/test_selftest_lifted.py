"""Stages of a bundle with kernels of the project between its GEMMs, and the faults they find."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import pytest
import torch

from fastwan.bundle import Bundle
from fastwan.errors import BadInput
from fastwan.export.passes.graphs import clone
from fastwan.export.passes.lower_nvfp4 import lower_nvfp4
from fastwan.progress import Quiet
from fastwan.quality.selftest.engine_references import EngineReferences
from fastwan.quality.selftest.machine import Machine, machine_of
from fastwan.quality.selftest.stages import STAGES, run_stages

pytestmark = pytest.mark.trt
MachineWith = Callable[[Any], Machine]
CHOSEN = tuple(stage for stage in STAGES if stage.name in ("glue", "block", "step", "capture"))


def test_kernels_block_step_and_video_are_those_of_the_references(
    lifted: Bundle, lifted_machine_with: MachineWith, kit: SimpleNamespace
) -> None:
    report = run_stages(lifted, lifted_machine_with(kit.Faults()), Quiet(), CHOSEN)
    assert [(s.name, s.status, s.cause) for s in report.stages] == [
        (stage.name, "passed", "") for stage in CHOSEN
    ]
    figures = {stage.name: stage.figures for stage in report.stages}
    assert len(figures["glue"]) == 8  # four forms of the residual and norm
    assert len(figures["block"]) == 8  # six GEMMs of a block, the first hidden state, the next qkv
    assert max(figure.value for figure in figures["block"]) < 1e-6


@pytest.mark.parametrize("lacking", [False, True])
def test_codes_that_an_engine_is_given_come_with_their_scales(
    lifted_references: EngineReferences, lacking: bool
) -> None:
    model = clone(lifted_references._parts["segment_01"].model)
    by_dtype = {value.dtype: value for value in model.graph.inputs}
    codes, scales = by_dtype[ir.DataType.FLOAT4E2M1], by_dtype[ir.DataType.FLOAT8E4M3FN]
    if lacking:
        model.graph.inputs.remove(scales)
        with pytest.raises(BadInput, match="block scales are no input"):
            lower_nvfp4(model)
        return
    lower_nvfp4(model)
    found = {value.name: (value.dtype, value.shape) for value in model.graph.inputs}
    assert found == {
        codes.name: (ir.DataType.UINT8, ir.Shape([1, 256, 128])),
        scales.name: (ir.DataType.UINT8, ir.Shape([1, 256, 16])),
    }


def swap_nibbles(made: Any) -> Any:
    *before, codes, scales = made
    return (*before, (codes << 4) | (codes >> 4), scales)


def swap_scale_rows(made: Any) -> Any:
    *before, scales = made
    rows = torch.arange(scales.shape[1]).flip(0)
    return (*before, scales.view(torch.uint8)[:, rows].view(scales.dtype))


@pytest.mark.parametrize("op", ["GeluQuantize", "CrossAttention"])
@pytest.mark.parametrize("fault", [swap_nibbles, swap_scale_rows])
def test_a_kernel_that_writes_another_operand_ends_at_the_glue(
    lifted: Bundle, lifted_machine_with: MachineWith, kit: SimpleNamespace, op: str, fault: Any
) -> None:
    faults = kit.Faults(glue=lambda region, made: fault(made) if region.op == op else made)
    report = run_stages(lifted, lifted_machine_with(faults), Quiet(), CHOSEN)
    assert report.failed == "glue"
    (failed,) = (stage for stage in report.stages if stage.name == "glue")
    assert "from the reference" in str(failed.cause)
    assert "--fusion none" in str(failed.still_works)


def test_without_a_gpu_device_code_and_references_are_run(lifted: Bundle) -> None:
    chosen = tuple(stage for stage in STAGES if stage.name in ("glue", "block", "step"))
    report = run_stages(lifted, machine_of("host"), Quiet(), chosen)
    assert {stage.name: stage.status for stage in report.stages} == {
        "glue": "passed", "block": "passed", "step": "passed",
    }  # fmt: skip
