"""The file of a video, written on a thread of its own while the next video is made."""

from __future__ import annotations

import time
from concurrent.futures import Executor, Future
from queue import SimpleQueue

from fastwan.config import VideoShape
from fastwan.runtime.model.executor import Array
from fastwan.runtime.video import Output, open_output


class _Abandoned(Exception):
    """The rest of the frames does not come."""


class FrameFile:
    """Takes the frames of one video in order; the file appears whole or not at all.

    Args:
        pool: with a thread for this file as soon as the one before is written.

    Attributes:
        written: the seconds that the file took once it is there; or what went wrong.
    """

    def __init__(self, pool: Executor, output: Output, shape: VideoShape) -> None:
        self._output = output
        self._shape = shape
        self._frames: SimpleQueue[Array | _Abandoned | None] = SimpleQueue()
        self.written: Future[float] = pool.submit(self._write)

    def put(self, frame: Array) -> None:
        """Take a frame, which nobody writes to any more."""
        self._frames.put(frame)

    def end(self) -> None:
        """Say that this was the last frame."""
        self._frames.put(None)

    def abandon(self) -> None:
        """Leave no file, and wait until nothing is left of it."""
        self._frames.put(_Abandoned())
        self.written.exception()

    def _write(self) -> float:
        seconds = 0.0
        height, width = self._shape.height, self._shape.width
        with open_output(self._output, height=height, width=width) as write:
            while (frame := self._frames.get()) is not None:
                if isinstance(frame, _Abandoned):
                    raise frame
                begin = time.perf_counter()
                write(frame)
                seconds += time.perf_counter() - begin
            begin = time.perf_counter()
        return seconds + time.perf_counter() - begin
