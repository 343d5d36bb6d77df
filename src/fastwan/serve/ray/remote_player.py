"""The replicas as the server's player."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Protocol

from fastwan.runtime.timings import Timings
from fastwan.serve.jobs import Asked
from fastwan.serve.offer import Offer
from fastwan.serve.player import Cancelled, Lost, State, Watch
from fastwan.serve.ray.messages import Broken, Failed, Frame, Made, Message, Step
from fastwan.serve.ray.replica import Described

_LOOK_SECONDS = 0.05
"""Between two looks whether a video is still wanted."""


class Answer(Protocol):
    """A streamed answer of a replica, as `ray.serve.handle.DeploymentResponseGenerator`."""

    def __iter__(self) -> Iterator[Message]: ...

    def cancel(self) -> None: ...


class RemotePlayer:
    """Makes videos by calls to a deployment, as many at a time as there are callers.

    Args:
        call: begins a video with whichever replica is free, or is next.
        described: by one replica; all are of one bundle.
        gone: errors of a call whose replica is gone.
    """

    def __init__(
        self,
        call: Callable[[Asked], Answer],
        described: Described,
        gone: tuple[type[Exception], ...],
    ) -> None:
        self._call = call
        self._offer = described.offer
        self._state = described.state
        self._gone = gone

    @property
    def offer(self) -> Offer:
        return self._offer

    def warm_up(self) -> None:
        """Nothing: a replica is warm before it is called."""

    def play(self, asked: Asked, watch: Watch) -> Timings:
        """Make a video; unlike another player's, on any thread.

        Raises:
            Cancelled: `watch` said so.
            Lost: the replica is gone or broken.
            FastWanError: it cannot be made.
        """
        answer = self._call(asked)
        with _cancelled_with(watch, answer):
            try:
                return self._follow(answer, watch)
            except self._gone as error:
                if watch.cancelled():
                    raise Cancelled from error
                raise Lost from error

    def _follow(self, answer: Answer, watch: Watch) -> Timings:
        for message in answer:
            match message:
                case Step(done):
                    watch.on_step(done)
                case Frame(pixels):
                    # Ray's memory holds it until then, and whoever takes frames may take his time.
                    watch.on_frame(pixels.copy())
                case Made(timings, state):
                    self._state = state
                    return timings
                case Failed(error):
                    raise error
                case Broken(text):
                    raise Lost(text)
        raise Lost("the answer has no end")

    def state(self) -> State:
        """Of the replica that made the latest video."""
        return self._state

    def close(self) -> None:
        """Nothing: the replicas are Ray's to end."""


@contextmanager
def _cancelled_with(watch: Watch, answer: Answer) -> Generator[None]:
    """Cancel a call as soon as nobody wants its video, also while it waits for a replica."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(_LOOK_SECONDS):
            if watch.cancelled():
                answer.cancel()
                return

    looking = threading.Thread(target=look, name="fastwan-look", daemon=True)
    looking.start()
    try:
        yield
    finally:
        over.set()
        looking.join()
