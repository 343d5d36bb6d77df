"""Whether a bundle fits the memory of its target."""

from __future__ import annotations

from fastwan.manifest import Manifest
from fastwan.quality.gpus import rates_of
from fastwan.runtime.model.samplers import schedule_of
from fastwan.runtime.recording.memory_plan import plan
from fastwan.runtime.recording.record import record

RESERVED_BYTES = 1 << 30
"""What a CUDA context, the compiled kernels and a desktop take beside the plan; an assumption."""


def memory_note(manifest: Manifest) -> str:
    """What to know of a bundle that does not fit its target, as a clause; empty where it does.

    A bundle without a transformer, or for a target of unknown memory, is taken to fit.
    """
    if not any(each.component == "dit" for each in manifest.engines.values()):
        return ""
    planned = plan(record(manifest, schedule_of(manifest.sampler_spec()))).total
    return misfit(planned, manifest.target)


def misfit(planned: int, target: str) -> str:
    """Why `planned` bytes of device memory do not fit a target, as a clause; empty where they do.

    They are taken to fit a target of unknown memory.
    """
    memory = rates_of(target).memory_bytes
    if not memory or planned + RESERVED_BYTES <= memory:
        return ""
    return (
        f"a video needs {planned / 1e9:.1f} GB and about {RESERVED_BYTES / 1e9:.1f} GB beside that "
        f"(predicted), and {target} has {memory / 1e9:.1f} GB: build a smaller or shorter "
        "video, or the text encoder in FP8 or FP4"
    )
