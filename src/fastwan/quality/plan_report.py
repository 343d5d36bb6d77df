"""What ``plan`` prints: time and memory of a model at several shapes on several targets."""

from __future__ import annotations

from typing import Literal

from fastwan.config import VideoShape
from fastwan.runtime.recording.memory_plan import DeviceBytes
from fastwan.schema import FigureReport, Predicted, Record


class PlannedVideo(Record):
    """A video of one shape on one target; of a prompt whose embeddings are there."""

    kernels: Predicted[int]
    """Of the whole video."""
    bytes_moved: Predicted[int]
    flops: Predicted[int]
    step_ms: Predicted[float | None]
    """Mean over the denoising steps; null where no rates of the target are known."""
    decode_ms: Predicted[float | None]
    """All latent frames, with the copies of their frames."""
    video_ms: Predicted[float | None]
    """Every step, decoder and copies; not the text encoder."""
    sober_step_ms: Predicted[float | None]
    """At rates that kernels have attained, in place of peaks; null where none are known."""
    sober_decode_ms: Predicted[float | None]
    sober_video_ms: Predicted[float | None]
    fits: Predicted[bool | None]
    """Null where the memory of the target is not known."""
    why: str
    """What takes the memory, where it does not fit."""


class PlannedShape(Record):
    """A video of one shape."""

    shape: VideoShape
    tokens: int
    """Of the transformer; the patch grid's."""
    padded_tokens: int
    """Rows that its kernels compute: whole tiles of 128."""
    device_bytes: Predicted[DeviceBytes]
    """Without the text encoder; the same on every target."""
    needed_bytes: Predicted[int]
    """In all: with the text encoder, and what a context and compiled kernels take."""
    targets: dict[str, PlannedVideo]


class PlannedTarget(Record):
    """A target, and the rates that videos are priced at there."""

    gpu: str
    memory_bytes: Predicted[int | None]
    """By the table of rates; null where not known."""
    rates: str | None
    """Date and source of the peaks."""
    sober_rates: str | None
    """Likewise of the attained rates."""
    text_encoder_ms: Predicted[float | None]
    """A prompt: the text encoder's weights, read once; null without one, or without rates."""


class PlannedText(Record):
    """The text encoder, which no shape changes; UMT5-XXL with a prompt of the usual length."""

    recipe: str
    bytes: Predicted[int]
    """Of its engines."""


class PlanReport(FigureReport):
    """Time and memory by shape, from records of a build at one of them; nothing was built."""

    kind: Literal["plan"] = "plan"
    schema_version: Literal[1] = 1
    model: str
    recipe: str
    attention: str
    fusion: str
    sampler: str
    steps: int
    guided: bool
    """Each step is computed for a prompt and for a negative one."""
    built_for: str
    """Target of the build that the records are of; its kernels stand for those of every target."""
    built_shape: VideoShape
    versions: dict[str, str]
    """Of the backend that built them."""
    text_encoder: PlannedText | None
    """Null where it was left out."""
    targets: dict[str, PlannedTarget]
    rows: tuple[PlannedShape, ...]
