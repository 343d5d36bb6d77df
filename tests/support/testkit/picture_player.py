"""A server that listens, over a player whose frames differ and come when a test lets them."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import uvicorn
from starlette.datastructures import State

from fastwan.config import VideoShape
from fastwan.runtime.model.executor import Array
from fastwan.runtime.timings import Timings
from fastwan.serve.app import create_app
from fastwan.serve.jobs import Asked
from fastwan.serve.player import Cancelled, Watch
from fastwan.serve.settings import Settings
from testkit.fake_player import WAIT, FakePlayer

SHAPES = (
    VideoShape(height=96, width=160, num_frames=17),
    VideoShape(height=160, width=96, num_frames=9),
)

_ENOUGH = 1 << 20


def picture(asked: Asked, index: int) -> Array:
    """A frame of a moving gradient, whose colours are the seed's."""
    across = np.linspace(0, np.pi, asked.width)[None, :]
    down = np.linspace(0, np.pi, asked.height)[:, None]
    waves = [np.sin(across + down + 0.2 * index + k + asked.seed) for k in range(3)]
    return (127 + 120 * np.stack(waves, -1)).astype(np.uint8)


class PicturePlayer(FakePlayer):
    """Makes frames of a moving gradient.

    Attributes:
        frames: a frame is made for each that it is released; without limit at first.
    """

    def __init__(self, *, shapes: tuple[VideoShape, ...] = SHAPES, guided: bool = False) -> None:
        super().__init__(shapes=shapes, guided=guided)
        self.frames = threading.Semaphore(_ENOUGH)

    def hold(self) -> None:
        """Make no frame from here on but for those that are released."""
        self.frames = threading.Semaphore(0)

    def let_go(self) -> None:
        """Hold nothing back any more."""
        self.gate.set()
        self.frames.release(_ENOUGH)

    def play(self, asked: Asked, watch: Watch) -> Timings:
        begin, made, first = time.perf_counter(), 0, 0.0

        def on_frame(_: Array) -> None:
            nonlocal made, first
            while not self.frames.acquire(timeout=0.005):
                if watch.cancelled():
                    raise Cancelled
            first = first or time.perf_counter() - begin
            watch.on_frame(picture(asked, made))
            made += 1

        timings = super().play(asked, replace(watch, on_frame=on_frame))
        timings["first_frame"], timings["total"] = first, time.perf_counter() - begin
        return timings


@dataclass(frozen=True)
class Listening:
    """A server that runs.

    Attributes:
        address: where.
        state: of its application.
    """

    address: str
    state: State

    def until_watched(self, job_id: str) -> None:
        """Wait until somebody waits for a job's first frame."""
        channel = self.state.service.channels.open(job_id)
        eventually(lambda: channel.is_watched)


def eventually(true: Callable[[], object]) -> None:
    """Wait until something is true."""
    end = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < end, "it does not become true"
        time.sleep(0.005)


@contextmanager
def listening(folder: Path, player: FakePlayer, **settings: object) -> Iterator[Listening]:
    """A server that runs while the `with` body does."""
    app = create_app(Settings(folder=folder, **settings), player)  # type: ignore[arg-type]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            eventually(lambda: server.started)
            yield Listening(f"http://127.0.0.1:{listener.getsockname()[1]}", app.state)
        finally:
            if isinstance(player, PicturePlayer):
                player.let_go()
            player.gate.set()
            server.should_exit = True
            thread.join()
