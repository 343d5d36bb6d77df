"""The transformer and the decoder of the tiny bundle, built anew with a fusion."""

from __future__ import annotations

from pathlib import Path

from fastwan.bundle import open_bundle
from fastwan.config import SAMPLERS, TARGETS, Component
from fastwan.engines.backend import load_backend
from fastwan.engines.build import ONNX_FOLDER, build_bundle
from fastwan.engines.builder import BuildRequest
from fastwan.engines.plan import plan_sources
from fastwan.export.attentions import find_attention
from fastwan.export.passes.fusions import find_fusion

PARTS: tuple[Component, ...] = ("dit", "decoder")


def build_fused(tiny_bundle: Path, out: Path, fusion: str, weights: str = "inline") -> None:
    """Build it with TensorRT-RTX, without a cache."""
    whole = open_bundle(tiny_bundle)
    folder = tiny_bundle / ONNX_FOLDER
    sources, regions = plan_sources(
        folder, whole.manifest.onnx, attention=find_attention("sage3"), plugins=False,
        components=PARTS, fusion=find_fusion(fusion), weights=weights,
    )  # fmt: skip
    request = BuildRequest(
        target=TARGETS["rtx5090"], backend=load_backend("tensorrt-rtx"), attention="sage3",
        fusion=fusion, weights=weights, samplers=(SAMPLERS["unipc"],), components=PARTS,
        use_cache=False,
    )  # fmt: skip
    build_bundle(folder, out, sources, request, regions=regions)
