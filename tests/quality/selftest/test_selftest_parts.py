"""The pieces of ``selftest``: rounding told from ties, what a library holds, what is left out."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fastwan.errors import BadInput
from fastwan.plugins import nvfp4
from fastwan.quality.selftest import machine, probe, regions, rounding
from fastwan.quality.selftest.anonymous import private_words, without
from fastwan.quality.selftest.context import Context, Skip
from fastwan.quality.selftest.environment import architectures, library_on_host
from fastwan.quality.selftest.memory import Scratch, to_numpy, to_torch
from testkit.host_device import HostDevice


def block(*values: float) -> torch.Tensor:
    """[1, 16] bf16 whose largest value is 6, so that its scale is 1."""
    x = torch.zeros(1, nvfp4.BLOCK)
    x[0, 0] = 6
    x[0, 1 : 1 + len(values)] = torch.tensor(values)
    return x.bfloat16()


def seen(*values: float) -> torch.Tensor:
    return block(*values).float()


@pytest.mark.parametrize(
    ("given", "found", "equal", "ties", "wrong"),
    [
        ((1.25, -2.5), (1.0, -2.0), 16, 0, 0),  # to even, as the reference
        ((1.25, -2.5), (1.5, -3.0), 14, 2, 0),  # away from zero: both lie on a tie
        ((1.25, 1.3), (1.5, 1.0), 14, 0, 1),  # 1.3 is none
        ((1.25, 1.3), (1.5, 1.5), 15, 1, 0),
        ((0.25, 5.0), (0.0, 6.0), 15, 1, 0),
        ((0.25, 5.0), (0.0, 4.5), 15, 0, 1),  # 4.5 is no value of e2m1
        ((0.25,), (float("nan"),), 15, 0, 1),
    ],
)
def test_values_on_a_tie_are_told_from_wrong_ones(
    given: Any, found: Any, equal: int, ties: int, wrong: int
) -> None:
    judged = rounding.judge(block(*given), seen(*found))
    assert (judged.equal, judged.code_ties, judged.wrong) == (equal, ties, wrong)


def test_a_scale_on_a_tie_may_go_either_way_and_no_further() -> None:
    x = torch.zeros(1, nvfp4.BLOCK)
    x[0, 0] = 6 * 1.0625  # between the scales 1 and 1.125
    x = x.bfloat16()
    reference = nvfp4.fake_quantize_activation(x)
    assert float(reference[0, 0]) == 6.0
    other = torch.zeros_like(reference)
    other[0, 0] = 6 * 1.125
    judged = rounding.judge(x, other)
    assert (judged.scale_ties, judged.wrong) == (1, 0)
    other[0, 0] = 6 * 1.25
    judged = rounding.judge(x, other)
    assert (judged.scale_ties, judged.wrong, judged.scale_ulps) == (0, 1, 2)
    other[0, 0] = 6 * 64.0
    assert rounding.judge(x, other).scale_ulps is None


@pytest.mark.parametrize("nearest", [True, False])
def test_a_quotient_by_way_of_a_reciprocal_is_a_rounding_to_nearest(nearest: bool) -> None:
    x = rounding.values(probe.K, probe.K)
    blocks = x.float().reshape(-1, nvfp4.BLOCK)
    # A reciprocal that is rounded to fp32, and one of 6 bits.
    slack = 1.0 if nearest else 1 + 2.0**-6
    scale = nvfp4.round_to_e4m3(blocks.abs().amax(-1) * (torch.tensor(1 / 6) * slack)).float()
    inverse = torch.where(scale > 0, slack / scale, torch.zeros(())).unsqueeze(-1)
    found = nvfp4.round_to_e2m1_values(blocks * inverse) * scale.unsqueeze(-1)
    judged = rounding.judge(x, found.reshape(x.shape))
    assert judged.equal < judged.values
    assert (judged.wrong == 0) is nearest


def test_the_probe_reads_out_each_operand() -> None:
    packed = probe.weight()
    for x in (probe.unit(), probe.ramp()):
        activation = probe.Packed(*nvfp4.quantize_activation(x))
        assert torch.equal(activation.values(), x.float())  # nothing is rounded
        y = probe.product(activation, packed)
        assert torch.equal(y[:, : probe.K], x.float())
    rows = packed.values()[probe.K :] * probe.GLOBAL_SCALE
    y = probe.product(probe.Packed(*nvfp4.quantize_activation(probe.unit())), packed)
    assert torch.equal(y[:, probe.K :].t(), rows * nvfp4.E2M1_MAX)


def test_an_unknown_fault_is_not_given_a_name() -> None:
    packed = probe.weight()
    right = [
        probe.product(probe.Packed(*nvfp4.quantize_activation(x)), packed)
        for x in (probe.unit(), probe.ramp())
    ]
    assert probe.diagnose(*right) == ""
    right[1] = right[1].roll(1, dims=0)
    assert probe.diagnose(*right) is None


def cubin(flags: int) -> bytes:
    return b"\x7fELF\x02\x01" + bytes(12) + struct.pack("<H", 190) + bytes(28) + struct.pack(
        "<I", flags
    ) + bytes(12)  # fmt: skip


@pytest.mark.parametrize(
    ("images", "held"),
    [((120,), {120}), ((90, 120 << 8), {90, 120}), ((), set())],
)
def test_architectures_are_read_from_the_images_of_a_library(
    tmp_path: Path, images: tuple[int, ...], held: set[int]
) -> None:
    library = tmp_path / "library.so"
    host = b"\x7fELF\x02\x01" + bytes(12) + struct.pack("<H", 62) + bytes(44)
    library.write_bytes(host + b"".join(map(cubin, images)) + b"\x7fELF\x02\x01cut")
    assert architectures(library) == held


@pytest.mark.parametrize(
    ("listed", "image", "serves"),
    [(("12.0",), 120, True), (("9.0",), 90, False), (("12.0",), 90, False)],
)
def test_without_a_gpu_a_library_for_another_architecture_is_told_by_its_contents(
    make_bundle: Callable[..., Any],
    tmp_path: Path,
    listed: tuple[str, ...],
    image: int,
    serves: bool,
) -> None:
    path = tmp_path / "library.so"
    path.write_bytes(cubin(image))
    context = Context(make_bundle(), machine.machine_of("host"))
    context.__dict__["library"] = SimpleNamespace(path=path, compute_capabilities=listed)
    if serves:
        assert "machine code for 12.0" in library_on_host(context).note
    else:
        with pytest.raises(Exception, match=r"holds code for .*, not for 12\.0"):
            library_on_host(context)


def test_without_a_compiler_the_prologue_is_skipped_with_the_reason(
    make_bundle: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = Context(make_bundle(), machine.machine_of("host"))
    monkeypatch.setattr(regions.shutil, "which", lambda _: None)
    with pytest.raises(Skip, match="g\\+\\+ is not installed"):
        regions.prologue_on_host(context)


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="unknown device 'cpu'"):
        machine.machine_of("cpu")
    for count, kind in ((0, "host"), (1, "cuda")):
        monkeypatch.setattr(machine, "cuda_device_count", lambda count=count: count)
        assert machine.machine_of("auto").kind == kind
    assert machine.machine_of("emulated").compute_capability == 90


def test_private_words_and_paths_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/jane")
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "jane")
    monkeypatch.setattr("socket.gethostname", lambda: "workbench.example.org")
    words = private_words([tmp_path / "my films"], [tmp_path / "cache"])
    text = (
        f"cannot open {tmp_path}/my films/dit/a.engine: {tmp_path}/cache/1 of jane@workbench, "
        "/opt/cuda/lib64/x.so.1, C:\\Users\\j\\b.dll, ~/x and/or 1.0 TB/s (/proc/self)"
    )
    assert without(text, words) == (
        "cannot open <bundle>/dit/a.engine: <path> of <user>@<host>, "
        "<path>, <path>, <path> and/or 1.0 TB/s (<path>)"
    )


def test_memory_of_a_stage_is_given_back() -> None:
    device = HostDevice()
    values = np.arange(1000, dtype=np.float32)
    with Scratch(device) as scratch:
        address = scratch.put(values)
        np.testing.assert_array_equal(scratch.get(address, (1000,), "float32"), values)
        assert set(scratch.get(scratch.space(16), (16,), "uint8")) == {0xA5}
        assert device._buffers
    assert device._buffers == {}
    x = torch.randn(3, 5).bfloat16()
    assert torch.equal(to_torch(to_numpy(x)), x)


@pytest.mark.trt
def test_the_linear_of_a_hopper_gpu_computes_the_reference(tiny: Any) -> None:
    from fastwan.engines.plan import serialized
    from fastwan.quality.selftest.gemm import build_linear, hold

    context = Context(tiny, machine.machine_of("host"))
    made = machine.Probe(build_linear(context), serialized(probe.model()), tiny.folder)
    engine = machine.emulated_linear(tiny, made, "cpu")

    def run(x: torch.Tensor) -> torch.Tensor:
        y = torch.zeros(probe.K, probe.N, dtype=torch.bfloat16)
        bindings = {"x": (x.data_ptr(), tuple(x.shape)), "y": (y.data_ptr(), tuple(y.shape))}
        engine.enqueue(bindings, 0, 0, 0)
        return y.float()

    outcome = hold(run(probe.unit()), run(probe.ramp()), run, "emulated")
    assert "262,144 of 262,144 quantised values equal" in outcome.note
