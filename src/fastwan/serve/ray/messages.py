"""What a replica tells the ingress while it makes a video."""

from __future__ import annotations

from dataclasses import dataclass

from fastwan.errors import FastWanError, first_line
from fastwan.runtime.model.executor import Array
from fastwan.runtime.timings import Timings
from fastwan.serve.player import State


@dataclass(frozen=True)
class Step:
    """So many steps are done."""

    done: int


@dataclass(frozen=True)
class Frame:
    """The next frame, uint8 [H, W, 3]."""

    pixels: Array


@dataclass(frozen=True)
class Made:
    """The video is complete."""

    timings: Timings
    state: State


@dataclass(frozen=True)
class Failed:
    """The video cannot be made; the replica can make others."""

    error: Exception


@dataclass(frozen=True)
class Broken:
    """The replica makes no further video, this one included."""

    text: str


Message = Step | Frame | Made | Failed | Broken


def failed(error: Exception) -> Failed:
    """An error that another process can read: of another library's, its name and first line."""
    if isinstance(error, FastWanError):
        return Failed(error)
    return Failed(RuntimeError(f"{type(error).__name__}: {first_line(error)}"))
