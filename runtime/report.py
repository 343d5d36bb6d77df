"""What ``generate`` prints, as models."""

from __future__ import annotations

from typing import Literal

from fastwan.runtime.model.noise import Noise
from fastwan.runtime.recording.memory_plan import DeviceBytes
from fastwan.schema import BundleFacts, FigureReport, Measured, Predicted, Record


class MadeVideo(Record):
    """One video: what it was made of, where it lies, what it took."""

    prompt: str
    negative_prompt: str
    seed: int
    noise: Noise
    """How noise is drawn of the seed: ``torch-cpu-bf16`` has the bytes of torch's generator on the
    CPU, in every install."""
    sampler: str
    guidance_scale: float
    """1 without guidance, which reads no negative prompt."""
    video: str | None
    """Path of the mp4; null without one."""
    frames_dir: str | None
    first_frame: str | None
    height: int
    width: int
    fps: int
    frame_count: Measured[int]
    frames_sha256: str
    """Over the raw pixels of all frames in order."""
    seconds: Measured[dict[str, float]]
    """By stage, of the last run, which was written; ``total`` is the whole video from the prompt
    on, ``first_frame`` the part of it until the first frame is on the host. Where a device makes a
    video at once, ``write`` runs beside the next one and is no part of it."""
    runs: Measured[tuple[dict[str, float], ...]]
    """Likewise of every measured run."""
    warmups: Measured[tuple[dict[str, float], ...]]
    """Likewise of every video before them, which does not count."""


class GenerateReport(FigureReport):
    """Videos that were made, one for each prompt."""

    kind: Literal["generate"] = "generate"
    schema_version: Literal[3] = 3
    bundle: BundleFacts
    device: str
    note: str
    """Why this device was chosen; empty where it was named."""
    runtime_cache: str
    """Whether kernels that were compiled before were used."""
    device_bytes: Predicted[DeviceBytes | None]
    """What a video takes on a GPU; null for a bundle without engines."""
    videos: tuple[MadeVideo, ...]
