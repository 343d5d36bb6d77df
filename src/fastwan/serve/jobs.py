"""A job: what was asked for, and what became of it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fastwan.config import VideoShape

Status = Literal["queued", "in_progress", "completed", "failed", "cancelled"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A video that the bundle can make; nothing is left to a default.

    Attributes:
        seed: of the noise, 0 to 2**64 - 1.
        guidance_scale: None for the sampler's.
    """

    model: str
    prompt: str
    negative_prompt: str | None = None
    guidance_scale: float | None = None
    seed: int
    sampler: str
    steps: int
    height: int
    width: int
    num_frames: int
    fps: int

    @property
    def shape(self) -> VideoShape:
        return VideoShape(height=self.height, width=self.width, num_frames=self.num_frames)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A row of the store.

    Attributes:
        client: who asked, see `fastwan.serve.auth`.
        attempts: how often it was begun.
        created_at, started_at, completed_at, expires_at: seconds since 1970; None where that has
            not happened.
        has_content: whether its video lies in the folder.
        timings: measured seconds by stage.
        error: code and message of a failure.
    """

    id: str
    client: str
    asked: Asked
    status: Status = "queued"
    attempts: int = 0
    created_at: float
    started_at: float | None = None
    completed_at: float | None = None
    expires_at: float | None = None
    has_content: bool = False
    timings: Mapping[str, float] = field(default_factory=dict)
    error: tuple[str, str] | None = None


def new_id() -> str:
    """A fresh id: letters, digits and one underscore, which no request chooses."""
    return f"video_{secrets.token_hex(16)}"
