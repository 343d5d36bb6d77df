"""A player without a bundle: it makes plain frames, and waits where a test tells it to."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from fastapi.testclient import TestClient

from fastwan.config import SAMPLERS, VideoShape
from fastwan.runtime.timings import Timings
from fastwan.serve.app import create_app
from fastwan.serve.jobs import Asked
from fastwan.serve.offer import Offer
from fastwan.serve.player import Cancelled, State, Watch
from fastwan.serve.settings import Settings

SHAPE = VideoShape(height=32, width=48, num_frames=5)
WAIT = 30.0
"""Seconds after which a test gives up."""


class FakePlayer:
    """Makes frames of one grey, which is the seed's.

    Args:
        guided: its second sampler takes a negative prompt.

    Attributes:
        gate: a video begins no step while it is cleared.
        begun: prompts, in the order in which their videos were begun.
        fault: raised by the next video, or by `warm_up`.
        seconds: of each step.
    """

    def __init__(self, *, guided: bool = False, shapes: tuple[VideoShape, ...] = (SHAPE,)) -> None:
        names = ("dmd", "unipc-50") if guided else ("dmd",)
        self.offer = Offer(
            model="fake", shapes=shapes, samplers={n: SAMPLERS[n] for n in names}, fps=16,
            device="cpu",
        )  # fmt: skip
        self.gate = threading.Event()
        self.gate.set()
        self.begun: list[str] = []
        self.fault: Exception | None = None
        self.seconds = 0.0
        self.told = State()
        self.closed = False

    def warm_up(self) -> None:
        if self.fault is not None:
            raise self.fault

    def play(self, asked: Asked, watch: Watch) -> Timings:
        self.begun.append(asked.prompt)
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        timings = Timings()
        for step in range(asked.steps):
            while not self.gate.wait(0.005):
                if watch.cancelled():
                    raise Cancelled
            with timings.measure(f"step_{step}"):
                end = time.monotonic() + self.seconds
                while time.monotonic() < end:
                    time.sleep(min(self.seconds, 0.005))
                    if watch.cancelled():
                        raise Cancelled
            watch.on_step(step + 1)
            if watch.cancelled():
                raise Cancelled
        frame = np.full((asked.height, asked.width, 3), asked.seed % 256, np.uint8)
        for _ in range(asked.num_frames):
            watch.on_frame(frame)
        timings["total"] = sum(timings.values())
        return timings

    def state(self) -> State:
        return self.told

    def close(self) -> None:
        self.closed = True


@contextmanager
def serving(
    folder: Path, player: FakePlayer | None = None, **settings: object
) -> Iterator[TestClient]:
    """A client of an application over a fake player, which runs while the `with` body does.

    Whatever waits at the player's gate is let go at the end.
    """
    player = player or FakePlayer()
    app = create_app(Settings(folder=folder, **settings), player)  # type: ignore[arg-type]
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client
        player.gate.set()


def until(client: TestClient, job_id: str, *statuses: str) -> dict[str, object]:
    """A job as soon as it is in one of some states."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        video = client.get(f"/v1/videos/{job_id}").json()
        if video.get("status") in statuses:
            return video
        time.sleep(0.005)
    raise AssertionError(f"{job_id} did not become {statuses}: {video}")
