"""What goes over the wire: the public videos API, as the ``openai`` package has its types.

Fields that are this server's own come last in each model.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from fastwan.config import VideoShape
from fastwan.serve.jobs import Job, Status


def _numeral(value: Any) -> Any:
    """A number as the text that a form would have."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:g}"
    return value


class _Wire(BaseModel):
    model_config = ConfigDict(
        frozen=True, use_attribute_docstrings=True, protected_namespaces=(), extra="forbid"
    )


class CreateVideo(_Wire):
    """A video to make. What is left out is the bundle's default."""

    prompt: Annotated[str, Field(min_length=1)]
    """What there is to see."""
    model: str | None = None
    """The bundle's model, see ``/v1/models``."""
    seconds: Annotated[str, BeforeValidator(_numeral)] | None = None
    """Length of a shape of the bundle, whole or exact."""
    size: str | None = None
    """Width and height in pixels, as ``832x480``."""
    num_frames: int | None = None
    """Length in frames."""
    seed: Annotated[int, Field(ge=0, lt=1 << 64)] | None = None
    """Of the noise; a fresh one where it is left out."""
    sampler: str | None = None
    """One of the bundle's."""
    negative_prompt: str | None = None
    """What a guided sampler leads away from."""
    guidance_scale: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """Of a guided sampler."""


class VideoError(_Wire):
    """Why a video was not made."""

    code: str
    message: str


class Video(_Wire):
    """A job."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Status
    progress: Annotated[int, Field(ge=0, le=100)]
    """Per cent of the steps that are done."""
    created_at: int
    """Seconds since 1970, as all times here."""
    completed_at: int | None
    """When it was completed, failed or cancelled."""
    expires_at: int | None
    """When it is forgotten and its video deleted."""
    prompt: str
    seconds: str
    size: str
    remixed_from_video_id: str | None = None
    error: VideoError | None
    started_at: int | None
    attempts: int
    """How often it was begun: more than once where the server was killed meanwhile."""
    seed: int
    sampler: str
    negative_prompt: str | None
    guidance_scale: float | None
    num_frames: int
    fps: int
    step: int | None
    """Steps that are done of a video in progress."""
    steps: int
    """Steps of the sampler."""
    timings: dict[str, float]
    """Measured seconds by stage, of a completed video."""

    @classmethod
    def of(cls, job: Job, step: int | None = None) -> Video:
        """A job as its owner sees it.

        Args:
            step: steps that are done, of one that is in progress.
        """
        asked = job.asked
        if job.status == "in_progress":
            # All steps are not all of the work: frames are decoded behind them.
            progress = min(99, round(100 * (step or 0) / asked.steps))
        else:
            progress = 100 if job.status == "completed" else 0
        return cls(
            id=job.id,
            model=asked.model,
            status=job.status,
            progress=progress,
            created_at=int(job.created_at),
            completed_at=_whole(job.completed_at),
            expires_at=_whole(job.expires_at),
            prompt=asked.prompt,
            seconds=seconds_text(asked.num_frames, asked.fps),
            size=size_text(asked.shape),
            error=VideoError(code=job.error[0], message=job.error[1]) if job.error else None,
            started_at=_whole(job.started_at),
            attempts=job.attempts,
            seed=asked.seed,
            sampler=asked.sampler,
            negative_prompt=asked.negative_prompt,
            guidance_scale=asked.guidance_scale,
            num_frames=asked.num_frames,
            fps=asked.fps,
            step=step if job.status == "in_progress" else None,
            steps=asked.steps,
            timings=dict(job.timings),
        )


class VideoList(_Wire):
    """A page of jobs."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoDeleted(_Wire):
    """Says that a job is gone."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: bool = True


class Model(_Wire):
    """What the server makes videos with."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "fastwan-export"
    sizes: list[str]
    """Width and height in pixels, as a request's ``size``; the first is the default."""
    seconds: list[str]
    """Length of each of these."""
    num_frames: list[int]
    """Frames of each of these."""
    samplers: list[str]
    """The first is the default."""
    fps: int
    device: str


class ModelList(_Wire):
    """The models: one."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(_Wire):
    """How the server is doing."""

    status: Literal["ok", "starting", "draining", "failing"]
    waiting: int
    """Videos in the queue."""


class ErrorDetail(_Wire):
    """What is wrong with a request."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(_Wire):
    """Every answer that is an error."""

    error: ErrorDetail


def size_text(shape: VideoShape) -> str:
    """Width and height as the API writes them."""
    return f"{shape.width}x{shape.height}"


def seconds_text(num_frames: int, fps: int) -> str:
    """Length of a video as the API writes it, without zeros at its end."""
    return f"{num_frames / fps:.6f}".rstrip("0").rstrip(".")


def _whole(moment: float | None) -> int | None:
    return None if moment is None else math.floor(moment)
