"""The one thread that makes videos, job by job."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from fastwan.errors import EnvironmentLacks, FastWanError, first_line
from fastwan.runtime.model.executor import Array
from fastwan.runtime.timings import Timings
from fastwan.serve.events import Channels, Event
from fastwan.serve.frame_file import FrameFile
from fastwan.serve.jobs import Job, Status
from fastwan.serve.live import LiveVideo
from fastwan.serve.player import Cancelled, Lost, Player, Watch
from fastwan.serve.queue import FairQueue
from fastwan.serve.results import Results
from fastwan.serve.store import Store

_LOST = 3
"""Videos in a row that a device fails at before it counts as lost."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a job ended.

    Attributes:
        again: it is to be made again: the server ended it, and nobody cancelled it.
        lost: likewise, and what made it is gone: the attempt counts.
        size: bytes of the video.
        error: code and message of a failure.
    """

    job: Job
    status: Status
    again: bool = False
    lost: bool = False
    size: int = 0
    timings: Timings = field(default_factory=Timings)
    error: tuple[str, str] | None = None


class Worker(threading.Thread):
    """Takes jobs from the queue until it is closed. The player is used by this thread alone.

    A video's file is written beside the next video; the one after that waits for it.

    A device that fails several times in a row is lost: the worker ends, so that a new process can
    take its place.

    Args:
        ended: told of each job, on this thread or on the one that writes its file.

    Attributes:
        ready: set once the player is warm.
        fault: what ended it early, or None.
    """

    def __init__(
        self,
        player: Player,
        store: Store,
        queue: FairQueue,
        channels: Channels,
        results: Results,
        ended: Callable[[Ended], None],
    ) -> None:
        super().__init__(name="fastwan-worker", daemon=True)
        self.ready = threading.Event()
        self.fault: Exception | None = None
        self._player = player
        self._store = store
        self._queue = queue
        self._channels = channels
        self._results = results
        self._ended = ended
        self._lock = threading.Lock()
        self._current = ""
        self._unwanted = False
        self._stopping = False
        self._lost_in_a_row = 0

    def run(self) -> None:
        try:
            self._player.warm_up()
            self.ready.set()
            with ThreadPoolExecutor(1, "fastwan-writer") as pool:
                before: Future[None] | None = None
                while (job_id := self._queue.take()) is not None:
                    begun = self._serve(job_id, pool)
                    if before is not None:
                        before.result()
                    before = begun
                if before is not None:
                    before.result()
        except Exception as error:
            self.fault = error

    def cancel(self, job_id: str) -> bool:
        """End a job after the step or frame that is being made; False where it is not this one."""
        with self._lock:
            if self._current != job_id:
                return False
            self._unwanted = True
            return True

    def stop(self) -> None:
        """End the job that is being made, to be made again by the next server."""
        with self._lock:
            self._stopping = True

    def _serve(self, job_id: str, pool: ThreadPoolExecutor) -> Future[None] | None:
        """Make a job's video; what is done when its file is written, or None without one."""
        with self._lock:
            self._current, self._unwanted = job_id, False
        job = self._store.begin(job_id, time.time())
        if job is None:  # it was cancelled meanwhile
            return None
        channel = self._channels.open(job.id)
        channel.publish(Event("started", {"attempt": job.attempts}))
        file = FrameFile(pool, self._results.output(job.id), job.asked.shape)
        live = LiveVideo(channel, job.asked.shape)
        try:
            timings = self._player.play(job.asked, self._watch(job, file, live))
        except Exception as error:
            file.abandon()
            live.abandon()
            self._ended(self._failed(job, error))
            self._count_lost(error)
            return None
        finally:
            with self._lock:
                self._current = ""
        self._lost_in_a_row = 0
        file.end()
        live.end()
        return pool.submit(partial(self._finish, job, timings, file, live))

    def _count_lost(self, error: Exception) -> None:
        """Raise the error of a device that made no video of several in a row."""
        if isinstance(error, EnvironmentLacks):
            self._lost_in_a_row += 1
            if self._lost_in_a_row == _LOST:
                raise error

    def _watch(self, job: Job, file: FrameFile, live: LiveVideo) -> Watch:
        """Tell the readers of a job's channel, and hand its frames on."""
        asked, channel = job.asked, self._channels.open(job.id)
        decoded = 0

        def on_step(done: int) -> None:
            channel.publish(Event("step", {"step": done, "steps": asked.steps}))

        def on_frame(frame: Array) -> None:
            nonlocal decoded
            live.put(frame)
            file.put(frame)
            decoded += 1
            channel.publish(Event("frames", {"frames": decoded, "num_frames": asked.num_frames}))

        return Watch(on_step=on_step, on_frame=on_frame, cancelled=self._is_cancelled)

    def _is_cancelled(self) -> bool:
        with self._lock:
            return self._unwanted or self._stopping

    def _finish(self, job: Job, timings: Timings, file: FrameFile, live: LiveVideo) -> None:
        """Tell of a video whose file is written, or could not be."""
        try:
            live.join()
            timings["write"] = file.written.result()
            size = self._results.path(job.id).stat().st_size
        except Exception as error:
            return self._ended(self._failed(job, error))
        assert job.started_at is not None
        timings["queue"] = max(0.0, job.started_at - job.created_at)
        self._ended(Ended(job=job, status="completed", size=size, timings=timings))

    def _failed(self, job: Job, error: Exception) -> Ended:
        match error:
            case Cancelled():
                return Ended(job=job, status="cancelled", again=not self._unwanted)
            case Lost():
                return Ended(job=job, status="queued", again=True, lost=True)
            case FastWanError():
                code, text = _code(error), str(error)
            case _:
                code, text = "internal_error", f"{type(error).__name__}: {first_line(error)}"
        return Ended(job=job, status="failed", error=(code, text))


def _code(error: FastWanError) -> str:
    """Name of an error's class as the API writes names."""
    name = type(error).__name__
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
