"""What a committed figure was made from, as a hash: a test says when the sources have changed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PLUGINS = ROOT / "plugins"

# Kernels of other regions are no part of the attention, so its sources are named one by one. Left
# out is CMakeLists.txt, which lists the sources of every kernel: what it decides of the attention
# are compile options and architectures, and tests/plugins/test_build_plugin.py holds those. Neither
# record was made through a TensorRT plugin, trt_*.cpp.
DEFINITIONS = (
    "reference.py",
    "attention_reference.py",
    "prologue_reference.py",
    "packing.py",
    "nvfp4.py",
    "cmake/*",
    "csrc/attention*.cu",
    "csrc/attention_parts.cuh",
    "csrc/elementwise.*",
    "csrc/emulate_mma.cpp",
    "csrc/emulate_parts.cpp",
    "csrc/emulate_prologue.cpp",
    "csrc/emulated_*",
    "csrc/fastwan_plugins.h",
    "csrc/flashinfer_softmax.h",
    "csrc/fp4.cuh",
    "csrc/host_*.h",
    "csrc/kernels.h",
    "csrc/key_split.h",
    "csrc/layout.h",
    "csrc/merge_parts.cuh",
    "csrc/prologue.*",
    "csrc/region.cpp",
    "csrc/shims/**/*",
    "csrc/status.h",
    "csrc/tensor_map_status.h",
    "csrc/widen.cuh",
)
"""Globs, below `PLUGINS`, of what decides the output and the time of the attention."""

VIDEO = (
    *(f"plugins/{name}" for name in DEFINITIONS),
    "plugins/csrc/normals.*",
    "plugins/normals.py",
    "runtime/emulated/*.py",
    "runtime/model/decode.py",
    "runtime/model/dit.py",
    "runtime/model/loop.py",
    "runtime/model/noise.py",
    "runtime/model/normal.py",
    "runtime/model/schedule.py",
    "runtime/model/samplers/*.py",
    "runtime/recording/executor.py",
    "runtime/recording/operations.py",
    "runtime/recording/record.py",
)
"""Globs, below the root, of what decides the frames of an emulated video."""

_GLUE_KERNELS = (
    "plugins/csrc/cross_attention.cuh",
    "plugins/csrc/cross_queries.cuh",
    "plugins/csrc/gelu.cuh",
    "plugins/csrc/glue.*",
    "plugins/csrc/glue_arguments.h",
    "plugins/csrc/group.cuh",
    "plugins/csrc/pairs.cuh",
    "plugins/csrc/quad.cuh",
    "plugins/csrc/quantize.cuh",
    "plugins/csrc/residual_norm.cuh",
    "plugins/csrc/tensor_core.cuh",
)

GLUE = (
    *_GLUE_KERNELS,
    "plugins/csrc/fp4.cuh",
    "plugins/glue_reference.py",
    "plugins/nvfp4.py",
)
"""Globs, below the root, of what decides the output and the time of the kernels between GEMMs."""

LIFTED = (
    *VIDEO,
    *_GLUE_KERNELS,
    "plugins/lifted.py",
)
"""Likewise of one whose kernels between GEMMs are the project's own."""

SAGE2 = (
    "plugins/csrc/fastwan_plugins.h",
    "plugins/csrc/fp4.cuh",
    "plugins/csrc/layout.h",
    "plugins/csrc/prologue.cuh",
    "plugins/csrc/sage2*",
    "plugins/csrc/status.h",
    "plugins/csrc/tensor_core.cuh",
    "plugins/nvfp4.py",
    "plugins/packing.py",
    "plugins/prologue_reference.py",
    "plugins/sage2_*.py",
)
"""Globs, below the root, of what decides the output and the time of SageAttention2++."""

GATE = (
    "runtime/emulated/*.py",
    "src/fastwan/quality/bench.py",
    "src/fastwan/quality/gate/figures.py",
    "src/fastwan/quality/gate/history.py",
    "src/fastwan/quality/gate/judge.py",
    "src/fastwan/quality/gate/limits.py",
    "src/fastwan/quality/gate/times.py",
)
"""Globs, below the root, of what decides whether the gate raises an alarm over measured times."""

SANITIZED = tuple(sorted({*(f"plugins/{name}" for name in DEFINITIONS), *_GLUE_KERNELS, *SAGE2}))
"""Globs, below the root, of the kernels that compute-sanitizer runs over."""


def sources(folder: Path = PLUGINS, definitions: Sequence[str] = DEFINITIONS) -> dict[str, Any]:
    """The globs, and SHA-256 over names and contents of the files that they match."""
    files = sorted({path for pattern in definitions for path in folder.glob(pattern)})
    digest = hashlib.sha256()
    for path in (path for path in files if path.is_file()):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes() + b"\0")
    return {"of": list(definitions), "sha256": digest.hexdigest()}


def video_sources(fusion: str) -> dict[str, Any]:
    """`sources` of the frames that a bundle of a fusion makes when it is emulated."""
    return sources(ROOT, VIDEO if fusion == "none" else LIFTED)


def sources_now(record: dict[str, Any]) -> dict[str, Any]:
    """`sources` as they are, of the globs that a record names."""
    for definitions in (VIDEO, LIFTED, GLUE, SAGE2, GATE, SANITIZED):
        if tuple(record["of"]) == definitions:
            return sources(ROOT, definitions)
    return sources()
