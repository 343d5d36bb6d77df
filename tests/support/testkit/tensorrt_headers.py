"""Where headers are that a harness for a TensorRT plugin is compiled with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def tensorrt_include() -> str:
    """Folder of TensorRT's headers; skips a test where there is none."""
    root = os.environ.get("TENSORRT_ROOT", "")
    for folder in (f"{root}/include", root, "/usr/include", "/usr/include/x86_64-linux-gnu"):
        if folder and Path(folder, "NvInferRuntime.h").is_file():
            return folder
    pytest.skip("TensorRT headers are not installed; set TENSORRT_ROOT")


def cuda_include() -> str:
    """Folder of the CUDA toolkit's headers, likewise."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    if not Path(home, "include", "cuda_runtime_api.h").is_file():
        pytest.skip("the CUDA toolkit is not installed")
    return f"{home}/include"
