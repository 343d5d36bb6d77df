"""Tiny bundles of other recipes and attentions than the tiny bundle's, by what they are called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastwan.build import BuildSpec, build_engine
from fastwan.bundle import open_bundle
from fastwan.config import SAMPLERS, TARGETS
from fastwan.engines.backend import load_backend
from fastwan.engines.build import ONNX_FOLDER, build_bundle
from fastwan.engines.builder import BuildRequest
from fastwan.engines.plan import plan_sources
from fastwan.export.attentions import find_attention
from fastwan.export.passes.fusions import NONE
from fastwan.progress import Quiet
from testkit.once import Once

FP8_MODEL = "FastWan-QAD-FP8-1.3B"
GUIDED_MODEL = "Wan2.1-T2V-1.3B"


def fp8_bundle(once: Once, checkpoint: Path, activation: str) -> Path:
    """Transformer alone, FP8 linears and attention, for an Ada GPU."""

    def build(folder: Path) -> None:
        spec = BuildSpec(
            str(checkpoint), folder, model=FP8_MODEL, target="rtx4090", components=("dit",),
            activation_scale=activation, use_cache=False,
        )  # fmt: skip
        build_engine(spec, Quiet())

    return once(f"fp8-{activation}", build)


def guided_bundle(once: Once, checkpoint: Path) -> Path:
    """Transformer and decoder, unquantised and with native attention, for an Ada GPU."""

    def build(folder: Path) -> None:
        spec = BuildSpec(
            str(checkpoint), folder, model=GUIDED_MODEL, target="rtx4090",
            components=("dit", "decoder"), use_cache=False,
        )  # fmt: skip
        build_engine(spec, Quiet())

    return once("guided", build)


def attention_bundle(once: Once, tiny_bundle: Path, attention: str) -> Path:
    """Transformer and decoder of the tiny bundle, built anew with another attention."""

    def build(folder: Path) -> None:
        whole = open_bundle(tiny_bundle)
        onnx = tiny_bundle / ONNX_FOLDER
        sources, regions = plan_sources(
            onnx, whole.manifest.onnx, attention=find_attention(attention), plugins=False,
            components=("dit", "decoder"), fusion=NONE,
        )  # fmt: skip
        request = BuildRequest(
            target=TARGETS["rtx5090"], backend=load_backend("tensorrt-rtx"), attention=attention,
            fusion="none", samplers=(SAMPLERS["unipc"],), components=("dit", "decoder"),
            use_cache=False,
        )  # fmt: skip
        build_bundle(onnx, folder, sources, request, regions=regions)

    return once(f"attention-{attention}", build)


TinyBundles = dict[str, Callable[[], Path]]


def tiny_bundles(once: Once, checkpoint: Path, tiny: Path, lifted: Path) -> TinyBundles:
    """By name, a bundle of every recipe, attention and of the largest fusion; made when called."""
    return {
        "nvfp4-sage3": lambda: tiny,
        "nvfp4-sage3-all": lambda: lifted,
        "nvfp4-sage2": lambda: attention_bundle(once, tiny, "sage2"),
        "nvfp4-native": lambda: attention_bundle(once, tiny, "native"),
        "fp8-fp8": lambda: fp8_bundle(once, checkpoint, "static"),
        "bf16-native": lambda: guided_bundle(once, checkpoint),
    }
