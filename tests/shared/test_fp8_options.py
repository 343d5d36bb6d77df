"""What `build-engine` refuses of FP8, and the prompts of a calibration."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from fastwan.build import BuildSpec, build_engine
from fastwan.calibration import PROMPTS, read_prompts
from fastwan.errors import BadInput
from fastwan.progress import Quiet

FP8 = "FastWan-QAD-FP8-1.3B"
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "nvfp4 on Ada": ({}, "RTX 4090 has no nvfp4 GEMM",
        rf"one of rtx5090, .*; rtx4090 runs {FP8}"),
    "fp8 on Ampere": (
        {"model": FP8, "target": "rtx3090"},
        "has no fp8 GEMM",
        "one of rtx5090, .*; rtx3090 runs Wan2.1-T2V-1.3B",
    ),
    "sage3 on Ada": (
        {"model": FP8, "attention": "sage3"},
        "cannot run the attention sage3",
        "one of native, fp8, sage2",
    ),
    "fp4 text encoder on Ada": (
        {"model": FP8, "components": ("dit", "text_encoder"), "text_encoder_recipe": "nvfp4"},
        "has no nvfp4 GEMM, which its text encoder needs",
        "--text-encoder-recipe, one of fp8, bf16",
    ),
    "a scale that nobody chooses": (
        {"target": "rtx5090", "activation_scale": "static"}, "recipe nvfp4 leaves no choice",
        "leave it out",
    ),
    "prompts that nothing reads": (
        {"model": FP8, "calibration": Path("prompts.txt")}, "nothing is calibrated",
        "pass --activation-scale static too",
    ),
}  # fmt: skip


@pytest.mark.trt
@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_pair_is_refused_with_the_right_one(
    tiny_checkpoint: Path, tmp_path: Path, case: str
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
    options, message, fix = REFUSED[case]
    settings = {"model": "FastWan-QAD-1.3B", "target": "rtx4090", "components": ("dit",)} | options
    spec = BuildSpec(str(tiny_checkpoint), tmp_path / "out", use_cache=False, **settings)
    with pytest.raises(BadInput, match=message) as refused:
        build_engine(spec, Quiet())
    assert re.fullmatch(fix, refused.value.fix)
    assert list(tmp_path.iterdir()) == []


def test_prompts_stand_one_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("a fox\n\n  an owl at night \n", encoding="utf-8")
    assert read_prompts(path) == ("a fox", "an owl at night")
    assert read_prompts(None) == PROMPTS


@pytest.mark.parametrize(
    ("content", "message"), [(b"\n \n", "no list of prompts"), (b"\xff\xfe", "not UTF-8")]
)
def test_a_file_without_prompts_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=message):
        read_prompts(path)


def test_a_missing_file_of_prompts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        read_prompts(tmp_path / "none.txt")
