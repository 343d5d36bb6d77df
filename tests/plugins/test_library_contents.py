"""What is in the built library: symbols, needed libraries, kernels, their registers and stack."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from fastwan.errors import BadInput
from fastwan.plugins.library_file import refuse_emulated
from fastwan.plugins.loader import PluginLibrary

EM_CUDA = 190
EIATTR_FRAME_SIZE, EIATTR_REGCOUNT = 0x11, 0x2F

# 8 warps split the 128 queries; a warp's MMA is 16 x 32 x 64, issued as four of 16 x 8 x 64:
# QK^T and PV are 4 x 2 of them each. Emulated, each of the four is four of 16 x 8 x 16 in fp16.
MMA_A_TILE = 64
HALF_MMA_A_TILE = 4 * MMA_A_TILE
FP4_MMA = "OMMA.SF.16864.F32.E2M1.E2M1.UE4M3.4X"
HALF_MMA = "HMMA.16816.F32"
GLUE = (
    *("quantize_kernelILb1E", "quantize_kernelILb0E"),
    *("residual_norm_kernelILi12E", "residual_norm_kernelILi40E", "cross_attention_kernel"),
)
SAGE2 = (
    *("5sage216attention_kernel", "5sage213reduce_kernel"),
    *("5sage217statistics_kernelILb0E", "5sage217statistics_kernelILb1E"),
    *(f"5sage215quantise_kernelILb{a}ELb{b}E" for a in (0, 1) for b in (0, 1)),
)
SAGE3, FLASHINFER = "compute_attn_ws", "attention_kernel_ws"
ATTENTION = (SAGE3, "attention_parts", FLASHINFER)
LOCAL_MEMORY = re.compile(r"\b(LDL|STL)\b")


class Kernel(NamedTuple):
    architecture: int
    name: str
    registers: int
    stack_bytes: int


def sections(elf: bytes) -> Iterator[tuple[str, bytes, int]]:
    """Name, content and link of each section of a 64-bit ELF file."""
    (table,) = struct.unpack_from("<Q", elf, 40)
    entry, count, names = struct.unpack_from("<HHH", elf, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", elf, table + i * entry) for i in range(count)]
    strings = elf[headers[names][4] :]
    for name, kind, _, _, offset, size, link, *_ in headers:
        label = strings[name : strings.index(b"\0", name)].decode()
        yield label, b"" if kind == 8 else elf[offset : offset + size], link


def kernels(library: bytes) -> list[Kernel]:
    """Kernels of every cubin in a library whose device code is not compressed."""
    found = []
    for match in re.finditer(rb"\x7fELF\x02\x01", library):
        elf = library[match.start() :]
        if struct.unpack_from("<H", elf, 18)[0] != EM_CUDA:
            continue
        (flags,) = struct.unpack_from("<I", elf, 48)
        content = {name: data for name, data, _ in sections(elf)}
        symbols, strings = content[".symtab"], content[".strtab"]
        attributes: dict[int, dict[int, int]] = {}
        info, position = content[".nv.info"], 0
        while position < len(info):
            form, attribute, size = struct.unpack_from("<BBH", info, position)
            position += 4
            if form == 4:  # a sized value
                if attribute in (EIATTR_REGCOUNT, EIATTR_FRAME_SIZE):
                    symbol, value = struct.unpack_from("<II", info, position)
                    attributes.setdefault(symbol, {})[attribute] = value
                position += size
        for symbol, values in attributes.items():
            if EIATTR_REGCOUNT not in values:
                continue
            (name,) = struct.unpack_from("<I", symbols, symbol * 24)
            label = strings[name : strings.index(b"\0", name)].decode()
            architecture = (flags >> 8) & 0xFFFF if flags & 0xFF00 else flags & 0xFF
            found.append(
                Kernel(
                    architecture,
                    label,
                    values[EIATTR_REGCOUNT],
                    values.get(EIATTR_FRAME_SIZE, 0),
                )
            )
    return found


@pytest.fixture(scope="module")
def compiled(library_path: Path) -> list[Kernel]:
    return kernels(library_path.read_bytes())


@pytest.fixture(scope="module")
def compiled_emulated(emulated_library: PluginLibrary) -> list[Kernel]:
    return kernels(emulated_library.path.read_bytes())


def nm(*arguments: str) -> str:
    tool = shutil.which("nm")
    if tool is None:
        pytest.skip("nm is not installed")
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def test_it_exports_the_interface_and_the_plugin_entry_points_only(
    each_library: PluginLibrary,
) -> None:
    library = each_library
    lines = nm("-D", "--defined-only", str(library.path)).splitlines()
    exported = {line.split()[-1] for line in lines}
    expected = {
        "fastwan_interface_version", "fastwan_build_info", "fastwan_last_error",
        "fastwan_device_supported", "fastwan_region_workspace_bytes", "fastwan_region_enqueue",
        "fastwan_sage_layout_of", "fastwan_sage_prologue_enqueue",
        "fastwan_sage_attention_enqueue", "fastwan_combine_enqueue", "fastwan_cast_enqueue",
        "fastwan_glue_workspace_bytes", "fastwan_glue_enqueue",
        "fastwan_sage2_device_supported", "fastwan_sage2_workspace_bytes",
        "fastwan_sage2_enqueue", "fastwan_sage2_layout_of", "fastwan_sage2_prologue_enqueue",
        "fastwan_sage2_attention_enqueue", "fastwan_normals_seed", "fastwan_normals_draw",
    }  # fmt: skip
    if library.build_info["tensorrt"] != "none":
        expected |= {"getCreators", "setLoggerFinder"}
    assert exported == expected


def test_it_needs_neither_cuda_nor_tensorrt_libraries(each_library: PluginLibrary) -> None:
    tool = shutil.which("readelf")
    if tool is None:
        pytest.skip("readelf is not installed")
    command = [tool, "-d", str(each_library.path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", text))
    allowed = {"libstdc++.so.6", "libgcc_s.so.1", "libc.so.6", "libm.so.6", "libdl.so.2"}
    allowed |= {"libpthread.so.0", "librt.so.1", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
    assert needed <= allowed
    assert not re.search(r"R(UN)?PATH", text)


def test_it_says_what_it_was_built_from(library: PluginLibrary) -> None:
    info = library.build_info
    expected = {"version", "cuda", "kernel", "attention", "prologue", "tensorrt", "emulated"}
    assert set(info) == expected | {"flashinfer", "sources"}
    assert info["emulated"] == "no"
    assert (info["kernel"], info["flashinfer"]) == ("0.3.5", "0.7.2.post1")
    assert {"120a", "121a"} <= set(info["attention"].split(","))
    assert {"80", "90", "120a", "121a"} <= set(info["prologue"].split(","))


def test_each_kernel_is_there_for_its_architectures(compiled: list[Kernel]) -> None:
    for name in (*ATTENTION, "merge_kernel"):
        assert {k.architecture for k in compiled if name in k.name} == {120, 121}, name
    prologue = {k.architecture for k in compiled if "prologue_kernel" in k.name}
    assert prologue == {80, 90, 120, 121}


def test_every_kernel_of_the_glue_is_there_for_its_architectures(compiled: list[Kernel]) -> None:
    for name in GLUE:
        assert {k.architecture for k in compiled if name in k.name} == {80, 90, 120, 121}


def test_an_emulated_library_has_the_same_glue(compiled_emulated: list[Kernel]) -> None:
    for name in GLUE:
        assert {k.architecture for k in compiled_emulated if name in k.name} == {90}


def test_sage_attention2_is_there_for_its_architectures(compiled: list[Kernel]) -> None:
    for name in SAGE2:
        assert {k.architecture for k in compiled if name in k.name} == {89, 90, 120, 121}


def test_an_emulated_library_has_sage_attention2(compiled_emulated: list[Kernel]) -> None:
    for name in SAGE2:
        assert {k.architecture for k in compiled_emulated if name in k.name} == {90}


def test_kernels_do_not_spill(compiled: list[Kernel]) -> None:
    assert compiled
    for kernel in compiled:
        if FLASHINFER in kernel.name or (kernel.architecture == 121 and SAGE3 in kernel.name):
            # 16 words, used once for a tile of queries; the inner loop is checked below.
            assert kernel.stack_bytes <= 64
        else:
            assert kernel.stack_bytes == 0, kernel


def test_registers_allow_the_occupancy_that_was_planned(compiled: list[Kernel]) -> None:
    for kernel in compiled:
        if any(name in kernel.name for name in ATTENTION):
            assert kernel.registers == 168  # 384 threads, one block a multiprocessor
        elif "prologue_kernelILi12E" in kernel.name:
            assert kernel.registers <= 80  # three blocks of 256 threads a multiprocessor
        elif "residual_norm_kernelILi12E" in kernel.name:
            # The same; two blocks with a residual.
            assert kernel.registers <= (80 if "NormKindE0E" in kernel.name else 128)
        elif "15quantize_kernel" in kernel.name:
            # Six blocks of 256 threads; four with GELU, whose table is shared.
            assert kernel.registers <= (64 if "ILb1E" in kernel.name else 40)
        elif "cross_attention_kernel" in kernel.name:
            assert kernel.registers <= 128  # two blocks
        elif "17statistics_kernel" in kernel.name:
            assert kernel.registers <= 64  # four blocks of 256 threads
        elif "15quantise_kernel" in kernel.name:
            assert kernel.registers <= 128  # two
        elif SAGE2[0] in kernel.name:
            assert kernel.registers <= 255  # one block of 256 threads


def instructions(library: Path, architecture: str, name: str) -> list[tuple[int, str]]:
    """Address and text of each instruction of a kernel."""
    tool = shutil.which("cuobjdump")
    if tool is None or shutil.which("nvdisasm") is None:
        pytest.skip("cuobjdump or nvdisasm is not installed")
    command = [tool, "-sass", "-arch", architecture, str(library)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kernel = re.split(r"\n\s*Function :", text[text.index(name) :])[0]
    lines = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+([^;]+);", kernel)
    return [(int(address, 16), line) for address, line in lines]


def inner_loop(code: list[tuple[int, str]], mma: str, count: int) -> list[str]:
    """Instructions of the loop over tiles of keys: the one that holds the MMAs of one tile."""
    for address, line in code:
        jump = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", line)
        if jump and int(jump[1], 16) < address:
            body = [text for at, text in code if int(jump[1], 16) <= at <= address]
            if sum(mma in text for text in body) == count:
                return body
    raise AssertionError("no loop with the MMAs of one tile")


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("architecture", ["sm_120a", "sm_121a"])
def test_the_inner_loop_is_fp4_mma_without_local_memory(
    library_path: Path, architecture: str, name: str
) -> None:
    code = instructions(library_path, architecture, name)
    assert not [line for _, line in code if "HMMA" in line]
    mma = [line for _, line in code if FP4_MMA in line]
    assert len(mma) == 2 * MMA_A_TILE  # once for the last tile, which is masked, once in the loop
    body = inner_loop(code, FP4_MMA, MMA_A_TILE)
    assert not [line for line in body if LOCAL_MEMORY.search(line) or "QMMA" in line]
    assert len(body) < 1200


def test_an_emulated_library_is_for_compute_capability_9_0_alone(
    emulated_library: PluginLibrary, compiled_emulated: list[Kernel], library: PluginLibrary
) -> None:
    info = emulated_library.build_info
    assert info["emulated"] == "yes"
    with pytest.raises(BadInput, match="emulates FP4"):
        refuse_emulated(emulated_library.path)
    refuse_emulated(library.path)
    assert (info["attention"], info["prologue"], info["tensorrt"]) == ("90a", "90", "none")
    assert emulated_library.compute_capabilities == ("9.0",)
    names = [kernel.name for kernel in compiled_emulated]
    assert all(any(each in name for name in names) for each in (SAGE3, FLASHINFER))
    assert any("prologue_kernel" in name for name in names)
    assert {kernel.architecture for kernel in compiled_emulated} == {90}
    # PTX would be compiled for any later GPU.
    ptx = b".address_size 64"
    assert ptx in library.path.read_bytes()
    assert ptx not in emulated_library.path.read_bytes()


def test_the_emulated_attention_fits_its_registers(compiled_emulated: list[Kernel]) -> None:
    attention, second = (
        next(kernel for kernel in compiled_emulated if name in kernel.name)
        for name in (SAGE3, FLASHINFER)
    )
    assert attention.registers == second.registers == 168
    assert attention.stack_bytes <= 8  # one word
    assert second.stack_bytes <= 512  # only here: with the GPU's own MMA its loop has none
    others = [kernel for kernel in compiled_emulated if kernel not in (attention, second)]
    assert others
    assert {kernel.stack_bytes for kernel in others} == {0}


@pytest.mark.parametrize("name", ATTENTION)
def test_the_inner_loop_of_the_emulated_attention(
    emulated_library: PluginLibrary, name: str
) -> None:
    code = instructions(emulated_library.path, "sm_90a", name)
    assert not [line for _, line in code if "OMMA" in line or "QMMA" in line]
    mma = [line for _, line in code if HALF_MMA in line]
    assert len(mma) == 2 * HALF_MMA_A_TILE
    body = inner_loop(code, HALF_MMA, HALF_MMA_A_TILE)
    spilled = [line for line in body if LOCAL_MEMORY.search(line)]
    # A loop has twice as many instructions where A is widened for each of its uses. FlashInfer's
    # runs out of registers here alone: beside the GPU's own MMA it has no local memory.
    words, most = (256, 4600) if name == FLASHINFER else (2, 4000)
    assert len(spilled) <= words
    assert len(body) < most


@pytest.mark.parametrize(
    ("architecture", "mma", "count"),
    [
        ("sm_89", "QMMA.16832.F16.E4M3.E4M3", 32),
        ("sm_90", "HMMA.16816.F16", 64),
        ("sm_120a", "QMMA.16832.F16.E4M3.E4M3", 32),
        ("sm_121a", "QMMA.16832.F16.E4M3.E4M3", 32),
    ],
)
def test_the_inner_loop_of_sage_attention2(
    library_path: Path, architecture: str, mma: str, count: int
) -> None:
    """16 queries and 64 keys a warp: 32 MMAs on int8, as many on e4m3 or twice as many on fp16."""
    code = instructions(library_path, architecture, SAGE2[0])
    body = inner_loop(code, mma, count)
    assert sum("IMMA.16832.S8.S8" in line for line in body) == 32
    assert not [line for line in body if LOCAL_MEMORY.search(line)]
    assert not [line for line in body if "BAR.SYNC" in line]  # no barrier holds the whole block
    assert len(body) <= 640
