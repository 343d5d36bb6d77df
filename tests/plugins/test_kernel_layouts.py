"""Our operand layouts against those that the attention kernel's own headers compute."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fastwan.plugins import build, loader

EXACT_COMPARISONS = 2 * (2 * 3) * 256 * 128


def header_folders() -> list[str]:
    """Include folders of the kernel and of CUTLASS: named, or downloaded by the library's build."""
    downloaded = loader.build_folder() / "kernel_headers"
    folders = [
        os.environ.get("FASTWAN_KERNEL_INCLUDE") or downloaded / "attn_qat_infer" / "blackwell",
        os.environ.get("FASTWAN_CUTLASS_INCLUDE")
        or downloaded / "cutlass_library" / "source" / "include",
    ]
    for folder in folders:
        if not Path(folder).is_dir():
            pytest.skip(f"the kernel headers are not there: {folder}")
    return [str(folder) for folder in folders]


@pytest.mark.slow
def test_operand_layouts_are_those_of_the_kernel(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    program = tmp_path / "probe"
    command = [nvcc, "-std=c++17", "-O0", "--expt-relaxed-constexpr", "-arch=sm_120a"]
    for folder in header_folders():
        command += ["-isystem", folder]
    command += ["-I", str(build.SOURCE / "csrc" / "shims"), "-o", str(program)]
    subprocess.run([*command, str(Path(__file__).with_name("kernel_layout_probe.cu"))], check=True)
    result = subprocess.run([str(program)], capture_output=True, text=True, check=True)
    said = dict(line.split(maxsplit=1) for line in result.stdout.splitlines() if ":" not in line)
    assert said == {"scales": f"{EXACT_COMPARISONS} 0", "shared": "100352"}
    held = dict(line.split(":") for line in result.stdout.splitlines() if ":" in line)
    for thread in range(4):
        # Of every 32 tokens, the 8 that start at 8 x thread: what a pair of threads shares a scale
        # for are 16 neighbours, and the logits lie where the second MMA wants the probabilities.
        tokens = [32 * part + 8 * thread + i for part in range(4) for i in range(8)]
        assert [int(token) for token in held[f"logits {thread}"].split()] == tokens
        assert [int(token) for token in held[f"values {thread}"].split()] == tokens
