"""Which GPU, driver, clocks, commit and bundle the figures of a record belong to."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Any

from figure_sources import ROOT, video_sources

from fastwan.shapes import shape_text

if TYPE_CHECKING:
    from fastwan.manifest import Manifest

QUERY = "name,driver_version,clocks.sm,clocks.mem,clocks_event_reasons.active"


def ask_smi(query: str = QUERY, gpu: str | None = "0") -> str:
    """What nvidia-smi says of a GPU, or of all of them, a line each."""
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    return _said(*command, *(() if gpu is None else ("-i", gpu)))


def commit() -> str:
    """Of the checkout, or as the environment says where there is no history."""
    named = os.environ.get("FASTWAN_COMMIT")
    return named or _said("git", "-C", str(ROOT), "rev-parse", "HEAD")


def emulating_machine() -> dict[str, Any]:
    """The machine of an emulation's record."""
    import torch

    return {
        "nvidia_smi": {"query": QUERY, "value": ask_smi()},
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "commit": commit(),
        "kind": "emulated",
    }


def of_bundle(manifest: Manifest) -> dict[str, Any]:
    """What was played, and the sources that decide its frames."""
    model = manifest.onnx.model
    return {
        "sources": video_sources(manifest.fusion),
        "bundle": {
            "model": model.name,
            "attention": manifest.attention,
            "fusion": manifest.fusion,
            "size": shape_text(model.shape),
            "components": list(manifest.components),
        },
    }


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
