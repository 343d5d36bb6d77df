"""A video as it is made, for those who wait for it: encoded on a thread of its own."""

from __future__ import annotations

import queue
import threading

from fastwan.config import VideoShape
from fastwan.errors import first_line
from fastwan.runtime.fragments import FragmentedMp4
from fastwan.runtime.model.executor import Array
from fastwan.serve.events import Channel, Event


class LiveVideo:
    """Publishes a job's frames as bytes of a fragmented mp4; readers never hold up who makes them.

    Whether anybody waits is asked at the first frame: without a reader nothing is encoded, and one
    that comes later gets the finished file.

    Args:
        channel: of the job; gets the bytes, in order and before it is told of the end.
    """

    def __init__(self, channel: Channel, shape: VideoShape) -> None:
        self._channel = channel
        self._shape = shape
        self._frames: queue.SimpleQueue[Array | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._unwanted = threading.Event()
        self._begun = False

    def put(self, frame: Array) -> None:
        """Take the next frame, uint8 [H, W, 3], which nobody writes to any more."""
        if not self._begun:
            self._begun = True
            if self._channel.is_watched:
                self._thread = threading.Thread(target=self._run, name="fastwan-live", daemon=True)
                self._thread.start()
        if self._thread is not None:
            self._frames.put(frame)

    def end(self) -> None:
        """Say that no frame follows."""
        self._frames.put(None)

    def abandon(self) -> None:
        """The video is not made: publish nothing more."""
        self._unwanted.set()
        self.end()
        self.join()

    def join(self) -> None:
        """Wait until all that was put is published."""
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            with FragmentedMp4(self._shape.height, self._shape.width) as video:
                while (frame := self._frames.get()) is not None and not self._unwanted.is_set():
                    self._publish(video.write(frame))
                if not self._unwanted.is_set():
                    self._publish(video.finish())
        except Exception as error:
            # The file is written beside this and does not need it; readers are told of the end.
            self._channel.publish(Event("broken", {"message": first_line(error)}))

    def _publish(self, body: bytes) -> None:
        if body:
            self._channel.publish(Event("chunk", body=body))
