"""Whether a bundle fits the memory of its target."""

from __future__ import annotations

from collections.abc import Sequence

from fastwan.config import TARGETS, TextEncoderConfig
from fastwan.manifest import Manifest
from fastwan.quality.gpus import rates_of
from fastwan.runtime.model.samplers import schedule_of
from fastwan.runtime.recording.memory_plan import plan
from fastwan.runtime.recording.record import record

RESERVED_BYTES = 1 << 30
"""What a CUDA context, the compiled kernels and a desktop take beside the plan; an assumption."""

_LINEARS = 4 * 4096 * 4096 + 3 * 4096 * 10240
"""Weights of the linears of a block of UMT5-XXL."""
TEXT_BYTES = {
    "bf16": 9_300_000_000,
    "nvfp4": 4_100_000_000,
    "fp8": TextEncoderConfig().num_layers * _LINEARS,
}
"""Engines of UMT5-XXL by recipe: as built in bf16 and NVFP4 (docs/figures.md), of FP8 the codes."""


def memory_note(manifest: Manifest) -> str:
    """What to know of a bundle that does not fit its target, as a clause; empty where it does.

    A bundle without a transformer, or for a target of unknown memory, is taken to fit.
    """
    if not any(each.component == "dit" for each in manifest.engines.values()):
        return ""
    planned = plan(record(manifest, schedule_of(manifest.sampler_spec()))).total
    text = manifest.onnx.graphs.get("text_encoder")
    whole = text is not None and not text.linears
    taken = max(TEXT_BYTES.values()) if whole else 0
    return misfit(planned, manifest.target, lighter_texts(manifest.target, taken))


def lighter_texts(target: str, taken: int) -> tuple[str, ...]:
    """Recipes of a target by which the text encoder takes fewer than `taken` bytes."""
    return tuple(name for name in TARGETS[target].recipes if TEXT_BYTES[name] < taken)


def misfit(planned: int, target: str, lighter: Sequence[str] = ()) -> str:
    """Why `planned` bytes of device memory do not fit a target, as a clause; empty where they do.

    They are taken to fit a target of unknown memory.

    Args:
        lighter: recipes by which the text encoder would take less.
    """
    memory = rates_of(target).memory_bytes
    if not memory or planned + RESERVED_BYTES <= memory:
        return ""
    text = f", or with --text-encoder-recipe {' or '.join(lighter)}" if lighter else ""
    return (
        f"a video needs {planned / 1e9:.1f} GB and about {RESERVED_BYTES / 1e9:.1f} GB beside that "
        f"(predicted), and {target} has {memory / 1e9:.1f} GB: build a smaller or shorter "
        f"video{text}"
    )
