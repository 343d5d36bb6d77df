"""The emulated FP4 MMA, run on the host: operands without error, each lane at its scales."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from fastwan.errors import EnvironmentLacks
from fastwan.plugins import loader, nvfp4
from fastwan.plugins.build import SOURCE

NAN = 0x7F
EVEN_THEN_ODD = [0, 2, 4, 6, 1, 3, 5, 7]


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def words(codes: torch.Tensor) -> torch.Tensor:
    """Codes 0..15 [.., 8] as words [..], first in the lowest nibble."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int64)
    return (codes.long() << shifts).sum(-1).to(torch.uint32).contiguous()


def scale_words(scales: torch.Tensor) -> torch.Tensor:
    """e4m3 codes [.., 4] as words [..], first in the lowest byte."""
    shifts = torch.arange(0, 32, 8, dtype=torch.int64)
    return (scales.long() << shifts).sum(-1).to(torch.uint32).contiguous()


def widened(emulation: ctypes.CDLL, codes: torch.Tensor, scale: int, byte: int) -> torch.Tensor:
    """fp16 values of eight codes times a scale, in the order of the codes."""
    pairs = torch.zeros(4, dtype=torch.uint32)
    word = int(words(codes))
    others = 0x38383838 & ~(0xFF << (8 * byte))
    emulation.fastwan_emulate_widen(
        ctypes.c_uint32(word),
        ctypes.c_uint32(others | scale << (8 * byte)),
        ctypes.c_uint32(byte),
        pointer(pairs),
    )
    halves = pairs.view(torch.float16)
    return halves[torch.tensor(EVEN_THEN_ODD).argsort()]


@pytest.mark.parametrize("byte", range(4))
def test_each_value_times_each_scale_is_exact(mma_emulation: ctypes.CDLL, byte: int) -> None:
    compared = 0
    for scale in range(NAN):
        value = torch.tensor([scale], dtype=torch.uint8).view(torch.float8_e4m3fn).double()
        for first in (0, 8):  # each code at one place, then all of them at the other places
            codes = (torch.arange(8) + first + scale) % 16
            found = widened(mma_emulation, codes.to(torch.uint8), scale, byte)
            expected = nvfp4.decode_e2m1(codes.to(torch.uint8)).double() * value
            assert torch.equal(found.double(), expected), scale
            compared += 8
    assert compared == 16 * NAN


def test_a_value_keeps_its_sign_when_it_is_zero(mma_emulation: ctypes.CDLL) -> None:
    found = widened(mma_emulation, torch.tensor([0, 8] * 4), 0x38, 0)
    assert found.view(torch.int16).tolist() == [0, -0x8000] * 4


def test_a_scale_that_is_not_a_number_stays_none(mma_emulation: ctypes.CDLL) -> None:
    codes = torch.arange(8)
    assert widened(mma_emulation, codes, NAN, 1).isnan().all()
    assert widened(mma_emulation, codes, NAN - 1, 1).isfinite().all()


def test_rounding_without_a_sign_is_that_of_e2m1(mma_emulation: ctypes.CDLL) -> None:
    # Every fp32 whose bit pattern ends in 13 zeros, and its neighbours: all ties and around them.
    top = torch.arange(0, 1 << 18, dtype=torch.int64) << 13
    values = torch.cat([top, top + 1, (top - 1).clamp(min=0)]).to(torch.int32).view(torch.float32)
    values = values[: values.numel() // 8 * 8].nan_to_num(nan=7.0).contiguous()
    out = torch.empty(values.numel() // 8, dtype=torch.uint32)
    mma_emulation.fastwan_emulate_e2m1_unsigned(
        pointer(values), pointer(out), ctypes.c_int64(values.numel())
    )
    assert torch.equal(out, words(nvfp4.round_to_e2m1(values).view(-1, 8)))


def random_operand(generator: torch.Generator, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [rows, 64] and scales [rows, 4] whose products sum to fp32 numbers without rounding."""
    codes = torch.randint(0, 16, (rows, 64), generator=generator, dtype=torch.uint8)
    scales = torch.randint(0x30, 0x40, (rows, 4), generator=generator, dtype=torch.uint8)
    return codes, scales


def values_of(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    scale = scales.view(torch.float8_e4m3fn).double().repeat_interleave(16, dim=1)
    return nvfp4.decode_e2m1(codes).double() * scale


def warp_sums(
    emulation: ctypes.CDLL, operands: Any, sums: torch.Tensor, *, apart: bool
) -> torch.Tensor:
    """`sums` [16, 32] plus what a warp computes, through the registers of its lanes."""
    (a, a_scales), (b, b_scales) = operands
    lane = torch.arange(32)
    quad, t = lane // 4, lane % 4

    def registers(codes: torch.Tensor, places: list[tuple[int, int]]) -> torch.Tensor:
        eights = codes.view(codes.shape[0], 8, 8)  # row, eight of k, value
        parts = [eights[quad + row, t + 4 * half] for row, half in places]
        return words(torch.stack(parts, dim=1))

    a_words = registers(a, [(8 * (i % 2), i // 2) for i in range(4)])
    b_words = registers(b, [(8 * (i // 2), i % 2) for i in range(8)])
    a_scale, b_scale = (
        scale_words(a_scales)[quad + 8 * (t % 2)],
        scale_words(b_scales)[quad + 8 * t],
    )
    index = torch.arange(16)
    rows = quad[:, None] + 8 * (index // 8)
    columns = 2 * t[:, None] + 8 * (index % 8 // 2) + index % 2
    held = sums[rows, columns].contiguous()
    emulation.fastwan_emulate_mma(
        pointer(a_words), pointer(b_words), pointer(a_scale.contiguous()),
        pointer(b_scale.contiguous()), pointer(held), int(apart),
    )  # fmt: skip
    out = torch.full_like(sums, float("nan"))
    out[rows, columns] = held
    return out


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_warp_multiplies_as_the_fp4_instruction_does(
    mma_emulation: ctypes.CDLL, seed: int, apart: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    operands = random_operand(generator, 16), random_operand(generator, 32)
    begin = torch.randint(-64, 64, (16, 32), generator=generator).float()
    expected = begin.double() + values_of(*operands[0]) @ values_of(*operands[1]).T
    assert torch.equal(expected, expected.float().double())  # so nothing may round
    found = warp_sums(mma_emulation, operands, begin, apart=apart)
    assert torch.equal(found.double(), expected)


def test_products_are_summed_before_they_meet_a_larger_sum(mma_emulation: ctypes.CDLL) -> None:
    generator = torch.Generator().manual_seed(3)
    operands = random_operand(generator, 16), random_operand(generator, 32)
    begin = torch.full((16, 32), 2.0**26)
    products = values_of(*operands[0]) @ values_of(*operands[1]).T
    rounded_once = (begin.double() + products).float()
    assert not torch.equal(rounded_once.double(), begin.double() + products)
    found = warp_sums(mma_emulation, operands, begin, apart=True)
    assert torch.equal(found, rounded_once)
    assert not torch.equal(warp_sums(mma_emulation, operands, begin, apart=False), rounded_once)


@pytest.mark.parametrize("which", [0, 1])
def test_each_scale_matters_where_it_stands(mma_emulation: ctypes.CDLL, which: int) -> None:
    generator = torch.Generator().manual_seed(7)
    operands = random_operand(generator, 16), random_operand(generator, 32)
    zeros = torch.zeros(16, 32)
    before = warp_sums(mma_emulation, operands, zeros, apart=False)
    scales = operands[which][1]
    for row, group in ((0, 0), (9, 1), (15, 3)):
        scales[row, group] ^= 1
        expected = values_of(*operands[0]) @ values_of(*operands[1]).T
        after = warp_sums(mma_emulation, operands, zeros, apart=False)
        assert torch.equal(after.double(), expected)
        changed = (after != before).any(1 - which).nonzero().flatten().tolist()
        assert changed == [row]
        before = after


def preprocessed(folder: Path, source: str, *definitions: str) -> set[str]:
    """Our files that reach the compiler with `source`; those of CUDA and CUTLASS are empty."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    ours = SOURCE / "csrc"
    text = "".join(path.read_text() for path in ours.glob("*.*"))
    for name in set(re.findall(r"#include [<\"]([^>\"]+)[>\"]", text)):
        if not (ours / name).is_file():
            empty = folder / "empty" / name
            empty.parent.mkdir(parents=True, exist_ok=True)
            empty.touch()
    command = [
        compiler,
        "-E",
        "-x",
        "c++",
        "-nostdinc",
        "-I",
        str(ours),
        "-I",
        str(folder / "empty"),
    ]
    result = subprocess.run(
        [*command, *definitions, str(ours / source)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {
        Path(name).name for name in re.findall(r'^# \d+ "([^"]+csrc/[^"]+)"', result.stdout, re.M)
    }


KERNELS = [
    ("attention.cu", "emulated_attention.h"),
    ("attention_flashinfer.cu", "emulated_flashinfer.h"),
]


@pytest.mark.parametrize(("source", "own"), KERNELS)
def test_without_the_option_nothing_of_the_emulation_is_compiled(
    tmp_path: Path, source: str, own: str
) -> None:
    plain = preprocessed(tmp_path, source)
    assert {source, "layout.h", "kernels.h", "status.h", "tensor_map_status.h"} <= plain
    assert preprocessed(tmp_path, source, "-DFASTWAN_EMULATED=0") == plain
    emulated = preprocessed(tmp_path, source, "-DFASTWAN_EMULATED=1")
    assert emulated - plain == {
        own, "emulated_gemm.h", "emulated_tensor_map.h", "emulated_mma.cuh", "widen.cuh", "fp4.cuh",
    } - plain  # fmt: skip


@pytest.mark.parametrize("source", [source for source, _ in KERNELS])
def test_code_for_another_gpu_is_an_error_of_the_compiler(tmp_path: Path, source: str) -> None:
    preprocessed(tmp_path, source, "-DFASTWAN_EMULATED=1", "-D__CUDA_ARCH__=900")
    with pytest.raises(subprocess.CalledProcessError) as refused:
        preprocessed(tmp_path, source, "-DFASTWAN_EMULATED=1", "-D__CUDA_ARCH__=1200")
    assert "compute capability 9.0" in refused.value.stderr


def test_the_emulated_library_is_found_under_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "checkout_root", lambda: tmp_path)
    monkeypatch.delenv(loader.EMULATED_LIBRARY_VARIABLE, raising=False)
    with pytest.raises(EnvironmentLacks, match=r"emulated plugin library is missing.*--emulated"):
        loader.find_library(emulated=True)
    built = tmp_path / "build" / "plugins" / "emulated" / loader.EMULATED_LIBRARY_NAME
    built.parent.mkdir(parents=True)
    built.touch()
    assert loader.find_library(emulated=True) == built
    named = tmp_path / "other.so"
    named.touch()
    monkeypatch.setenv(loader.EMULATED_LIBRARY_VARIABLE, str(named))
    assert loader.find_library(emulated=True) == named
