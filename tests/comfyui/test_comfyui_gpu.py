"""The script that runs the nodes in a ComfyUI on a GPU, on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_videos_are_those_of_generate(
    real: tuple[Path, str], tiny_bundle: Path, tmp_path: Path
) -> None:
    root = Path(__file__).resolve().parents[2]
    comfyui, python = real
    output = tmp_path / "record.json"
    command = [python, root / "scripts" / "comfyui_gpu.py", tiny_bundle, comfyui, "-o", output]
    subprocess.run(
        [*command, "--device", "cpu"],
        check=True,
        env={**os.environ, "PYTHONPATH": str(root / "src"), "FASTWAN_COMMIT": "none"},
    )
    item = json.loads(output.read_text())["items"]["comfyui"]
    assert item["passed"]
    roomy = item["roomy"]
    assert roomy["pixels_equal"] == [True] * 6
    assert len(roomy["node_seconds"]) == 3
    assert len(roomy["picture_seconds"]) == 6  # of three steps, and of the frames of three latents
    assert roomy["error"].startswith("FastWanTextToVideo: width 16 was asked for")
