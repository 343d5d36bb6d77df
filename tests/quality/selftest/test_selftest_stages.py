"""A machine without a fault passes every stage; each planted fault ends the run where it should."""

from __future__ import annotations

import getpass
import json
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from fastwan.bundle import Bundle
from fastwan.cli import main
from fastwan.plugins import nvfp4
from fastwan.progress import Quiet
from fastwan.quality.selftest import probe
from fastwan.quality.selftest.machine import Machine, machine_of
from fastwan.quality.selftest.markdown import markdown
from fastwan.quality.selftest.report import SelftestReport, StageResult
from fastwan.quality.selftest.stages import STAGES, run_stages
from fastwan.runtime.device import kernels
from fastwan.runtime.recording.machine import DeviceError

pytestmark = pytest.mark.trt
MachineWith = Callable[[Any], Machine]
NAMES = [stage.name for stage in STAGES]
MISREAD = {fault.name: fault.misread for fault in probe.FAULTS}


def around(name: str) -> tuple[Any, ...]:
    """A stage with the one before it and the one behind it."""
    index = NAMES.index(name)
    return STAGES[max(0, index - 1) : index + 2]


def stopped_at(
    bundle: Bundle, machine: Machine, name: str, stages: Any = None
) -> tuple[SelftestReport, StageResult]:
    """The report of a run that has to end at a stage, and that stage."""
    report = run_stages(bundle, machine, Quiet(), stages or around(name))
    status = {stage.name: stage.status for stage in report.stages}
    assert report.failed == name, report.stages
    names = list(status)
    before, behind = names[: names.index(name)], names[names.index(name) + 1 :]
    assert {status[each] for each in before} <= {"passed", "skipped"}
    assert [status[each] for each in behind] == ["not reached"] * len(behind)
    (failed,) = (stage for stage in report.stages if stage.name == name)
    assert failed.cause
    assert failed.still_works
    assert "Still works: " in markdown(report)
    return report, failed


def test_a_machine_without_a_fault_passes_every_stage(
    tiny: Bundle,
    machine_with: MachineWith,
    kit: SimpleNamespace,
    validator: Callable[[str], Draft202012Validator],
) -> None:
    report = run_stages(tiny, machine_with(kit.Faults()), Quiet())
    status = {stage.name: stage.status for stage in report.stages}
    assert list(status) == NAMES
    assert status.pop("glue") == "skipped"  # nothing but attention is between its engines
    assert set(status.values()) == {"passed"}
    assert (report.failed, report.exit_code) == (None, 0)
    printed = json.loads(report.to_json())
    validator("selftest").validate(printed)
    assert SelftestReport.model_validate(printed) == report
    figures = [figure for stage in report.stages for figure in stage.figures]
    held = [(figure.value, figure.limit) for figure in figures if figure.limit is not None]
    assert len(held) > 10
    assert all(value <= limit for value, limit in held)
    # Engines and regions are the references' own here, so that nothing may differ.
    exact = ("attention", "block", "step")
    differences = [
        figure.value
        for stage in report.stages
        if stage.name in exact
        for figure in stage.figures
        if figure.name.startswith("relative L2")
    ]
    assert len(differences) > 10
    assert max(differences) < 1e-6
    page = markdown(report)
    assert all(stage.title in page for stage in STAGES)


@pytest.mark.parametrize(
    ("driver", "cause"),
    [
        (None, "no driver"),
        (("12.4", 1, 120), "knows CUDA 12.4, this needs 13.0"),
        (("13.0", 0, None), "no CUDA device visible"),
        (("13.0", 1, 89), "compute capability 8.9, this needs 12.0"),
    ],
)
def test_a_wrong_driver_or_gpu_ends_at_the_driver(
    tiny: Bundle, machine_with: MachineWith, kit: SimpleNamespace, driver: Any, cause: str
) -> None:
    faults = kit.Faults(driver=driver and kit.Driver(*driver))
    report, failed = stopped_at(tiny, machine_with(faults), "driver", STAGES)
    assert cause in failed.cause
    assert failed.fix
    assert report.exit_code == 3
    assert report.gpu is None
    assert "--device cpu" in failed.still_works


def test_too_little_memory_ends_at_the_driver(
    tiny: Bundle, machine_with: MachineWith, kit: SimpleNamespace
) -> None:
    faults = kit.Faults()
    faults.device.total_bytes = 1_000_000
    report, failed = stopped_at(tiny, machine_with(faults), "driver", STAGES)
    assert "of device memory" in failed.cause
    assert report.exit_code == 3


def test_a_library_for_another_architecture_ends_at_the_library(
    tiny: Bundle, machine_with: MachineWith, kit: SimpleNamespace
) -> None:
    faults = kit.Faults(capabilities=("9.0",))
    report, failed = stopped_at(tiny, machine_with(faults), "library", STAGES)
    assert failed.cause == "the plugin library serves compute capability 9.0, not 12.0"
    assert failed.fix == "fastwan-export build-plugin"
    assert report.exit_code == 3


def test_a_small_kernel_that_reads_other_elements_ends_at_the_library(
    tiny: Bundle, machine_with: MachineWith, kit: SimpleNamespace
) -> None:
    faults = kit.Faults(cast=lambda rows: (2, rows[1] // 2, 3))
    report, failed = stopped_at(tiny, machine_with(faults), "library", STAGES)
    assert "elements of a cast differ" in failed.cause
    assert report.exit_code == 4


@pytest.mark.parametrize("operand", ["q", "k_scale", "v"])
def test_one_wrong_byte_of_an_operand_ends_at_the_prologue(
    tiny: Bundle, machine_with: MachineWith, kit: SimpleNamespace, operand: str
) -> None:
    def flip(made: Any) -> Any:
        changed = getattr(made, operand).clone()
        changed.view(-1)[5] ^= 1
        return made._replace(**{operand: changed})

    faults = kit.Faults(operands=flip)
    report, failed = stopped_at(tiny, machine_with(faults), "prologue", around("prologue"))
    assert f"the prologue's {operand} of 1 tokens: 1 of" in failed.cause
    assert report.exit_code == 4
    assert "--attention native" in failed.still_works


@pytest.mark.parametrize(
    "change",
    [
        lambda out: out * 1.05,
        lambda out: out.roll(1, dims=1),
        lambda out: out + 2.0**-12,  # rows behind the tokens are no longer zero
    ],
)
def test_another_attention_ends_at_the_attention(
    tiny: Bundle, machine_with: MachineWith, kit: SimpleNamespace, change: Any
) -> None:
    machine = machine_with(kit.Faults(attention=change))
    report, failed = stopped_at(tiny, machine, "attention")
    assert "differs from the reference" in failed.cause
    assert report.exit_code == 4
    assert "--attention native" in failed.still_works


@pytest.mark.parametrize("operand", ["weight", "activation"])
@pytest.mark.parametrize("fault", MISREAD)
def test_a_misread_operand_ends_at_the_gemm_by_its_name(
    tiny: Bundle, machine_with: MachineWith, kit: SimpleNamespace, operand: str, fault: str
) -> None:
    faults = kit.Faults(**{operand: MISREAD[fault]})
    _, failed = stopped_at(tiny, machine_with(faults), "gemm", around("gemm")[1:])
    named = next(each.cause for each in probe.FAULTS if each.name == fault)
    assert named in failed.cause
    # Which operand has swapped nibbles cannot be told: swapping both changes no product.
    wanted = "weight or of the activation" if fault == "nibbles" else operand
    assert f"of the {wanted}, " in failed.cause


def truncating(x: torch.Tensor) -> Any:
    """Codes rounded towards zero."""
    _, scale = nvfp4.quantize_activation(x)
    divisor = scale.float().repeat_interleave(nvfp4.BLOCK, -1)
    quotient = torch.where(divisor > 0, x.float() / divisor, torch.zeros(()))
    codes = nvfp4.round_to_e2m1(quotient)
    over = nvfp4.decode_e2m1(codes).abs() > quotient.abs()
    return nvfp4.pack_nibbles(codes - over.to(torch.uint8)), scale


def coarse(x: torch.Tensor) -> Any:
    """Block scales one unit in the last place too large."""
    _, scale = nvfp4.quantize_activation(x)
    larger = (scale.view(torch.uint8) + 1).clamp(max=0x7E).view(torch.float8_e4m3fn)
    divisor = larger.float().repeat_interleave(nvfp4.BLOCK, -1)
    return nvfp4.pack_nibbles(nvfp4.round_to_e2m1(x.float() / divisor)), larger


def only_inexact(quantiser: Any) -> Any:
    """A quantiser that is right where nothing has to be rounded."""

    def quantise(x: torch.Tensor) -> Any:
        exact = torch.equal(nvfp4.fake_quantize_activation(x), x.float())
        return (nvfp4.quantize_activation if exact else quantiser)(x)

    return quantise


@pytest.mark.parametrize(
    ("quantiser", "cause"),
    [(truncating, "otherwise than to nearest"), (coarse, "scales 1 ULP away")],
)
def test_a_quantiser_that_rounds_otherwise_ends_at_the_gemm(
    tiny: Bundle, machine_with: MachineWith, kit: SimpleNamespace, quantiser: Any, cause: str
) -> None:
    faults = kit.Faults(quantiser=only_inexact(quantiser))
    _, failed = stopped_at(tiny, machine_with(faults), "gemm", around("gemm")[1:])
    assert cause in failed.cause
    figures = {figure.name: figure.value for figure in failed.figures}
    assert figures["blocks that are no rounding to nearest"] > 1000
    assert figures["quantised values that are equal"] < 0.9


@pytest.mark.parametrize(("engine", "stage"), [("segment_01", "block"), ("segment_02", "step")])
def test_a_wrong_engine_ends_at_the_block_or_at_the_step(
    tiny: Bundle, machine_with: MachineWith, kit: SimpleNamespace, engine: str, stage: str
) -> None:
    faults = kit.Faults(engines={engine: lambda value: np.roll(value, 1, axis=-1)})
    report, failed = stopped_at(tiny, machine_with(faults), stage, around(stage)[-2:])
    assert "from the reference" in failed.cause
    assert report.exit_code == 4


def test_a_graph_that_fails_to_capture_ends_at_the_capture_and_leaves_the_calls(
    tiny: Bundle, machine_with: MachineWith, kit: SimpleNamespace
) -> None:
    faults = kit.Faults()
    faults.device.faults["end_capture"] = DeviceError("not permitted", "capture")
    report, failed = stopped_at(tiny, machine_with(faults), "capture", around("capture")[1:])
    assert failed.cause == "the video cannot be captured as a graph: not permitted"
    assert "call by call" in failed.still_works
    assert report.exit_code == 4


def test_a_graph_that_makes_other_frames_ends_at_the_capture(
    tiny: Bundle, machine_with: MachineWith, kit: SimpleNamespace
) -> None:
    faults = kit.Faults()
    end = faults.device.end_capture

    def forgetful(stream: int) -> int:
        graph = end(stream)
        work = faults.device._recorded[graph]
        last = max(i for i, each in enumerate(work) if each.call.kind == "combine")
        del work[last]
        return graph

    faults.device.end_capture = forgetful
    _, failed = stopped_at(tiny, machine_with(faults), "capture", around("capture")[1:])
    assert "differ between the graph and its calls" in failed.cause


def test_a_library_that_raises_anything_ends_its_stage_and_names_nobody(
    tiny: Bundle, machine_with: MachineWith, kit: SimpleNamespace, tmp_path: Path
) -> None:
    def broken(_: Any) -> Any:
        raise ValueError(f"{tmp_path}/kernel.cu of {getpass.getuser()} on {socket.gethostname()}")

    machine = machine_with(kit.Faults(attention=broken))
    report, failed = stopped_at(tiny, machine, "attention")
    assert failed.cause.startswith("ValueError: <")
    text = report.to_json() + markdown(report)
    for private in (str(tmp_path), str(tiny.root), str(Path.home()), str(Path.cwd())):
        assert private == "/" or private not in text


def test_a_user_whose_name_is_a_word_of_the_report_gets_a_report(
    tiny: Bundle, machine_with: MachineWith, kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "cuda")
    report = run_stages(tiny, machine_with(kit.Faults()), Quiet(), STAGES[:1])
    assert SelftestReport.model_validate_json(report.to_json()).device == "cuda"


@pytest.mark.parametrize(("kind", "passes"), [("cuda", True), ("emulated", False)])
def test_an_emulated_attention_is_held_to_its_own_limit(
    tiny: Bundle, machine_with: MachineWith, kit: SimpleNamespace, kind: Any, passes: bool
) -> None:
    machine = replace(machine_with(kit.Faults(attention=lambda out: out * 1.005)), kind=kind)
    report = run_stages(tiny, machine, Quiet(), around("attention")[:2])
    assert (report.failed is None) is passes
    labels = {figure.label for figure in report.stages[1].figures}
    assert labels == {"measured" if kind == "cuda" else "emulated"}


def test_a_process_that_ends_in_a_stage_leaves_a_report_that_names_it(
    tiny: Bundle, machine_with: MachineWith, kit: SimpleNamespace
) -> None:
    def crash(_: Any) -> Any:
        raise KeyboardInterrupt

    written: list[SelftestReport] = []
    machine = machine_with(kit.Faults(attention=crash))
    with pytest.raises(KeyboardInterrupt):
        run_stages(tiny, machine, Quiet(), around("attention"), written.append)
    assert [report.failed for report in written] == ["prologue", "attention"]
    assert [stage.status for stage in written[-1].stages] == ["passed", "failed", "not reached"]
    assert "the process ended in this stage" in markdown(written[-1])
    written.clear()
    report = run_stages(tiny, machine_with(kit.Faults()), Quiet(), STAGES[:1], written.append)
    assert written[-1] == report
    assert report.failed is None


@pytest.mark.parametrize("content", [b"text", b"\x7fELF\x02\x01" + bytes(58)])
def test_a_file_that_is_no_library_ends_at_the_library(
    tiny: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    file = tmp_path / "library.so"
    file.write_bytes(content)
    monkeypatch.setattr(kernels, "BUNDLED", "none")  # it may have been built with one
    monkeypatch.setenv("FASTWAN_PLUGIN_LIBRARY", str(file))
    report, failed = stopped_at(tiny, machine_of("host"), "library", around("library"))
    assert failed.cause.startswith("not a ")
    assert report.exit_code == 3
    assert str(tmp_path) not in report.to_json()


def test_without_a_gpu_the_stages_of_the_host_are_run_and_written(
    tiny: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "BUNDLED", "none")  # it may have been built with one
    monkeypatch.setenv("FASTWAN_PLUGIN_LIBRARY", str(tmp_path / "none.so"))
    folder = tmp_path / "report"
    arguments = ["selftest", str(tiny.root), "-o", str(folder), "--device", "host", "--json"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    report = json.loads((folder / "selftest.json").read_text())
    assert report == json.loads(done.stdout)
    status = {stage["name"]: stage["status"] for stage in report["stages"]}
    skipped = {name for name, each in status.items() if each == "skipped"}
    never = {"library", "attention", "glue"}
    assert never <= skipped <= never | {"prologue"}
    assert {status[name] for name in NAMES if name not in skipped} == {"passed"}
    page = (folder / "selftest.md").read_text()
    assert page.startswith("# fastwan-export selftest")
    assert str(tmp_path) not in page
    assert str(tmp_path) not in done.stdout
