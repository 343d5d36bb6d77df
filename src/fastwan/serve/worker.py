"""The one thread that makes videos, job by job."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fastwan.errors import FastWanError, first_line
from fastwan.runtime.model.executor import Array
from fastwan.runtime.timings import Timings
from fastwan.runtime.video import open_output
from fastwan.serve.events import Channels, Event
from fastwan.serve.jobs import Job, Status
from fastwan.serve.player import Cancelled, Player, Watch
from fastwan.serve.queue import FairQueue
from fastwan.serve.results import Results
from fastwan.serve.store import Store


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a job ended.

    Attributes:
        again: it is to be made again: the server ended it, and nobody cancelled it.
        size: bytes of the video.
        error: code and message of a failure.
    """

    job: Job
    status: Status
    again: bool = False
    size: int = 0
    timings: Timings = field(default_factory=Timings)
    error: tuple[str, str] | None = None


class Worker(threading.Thread):
    """Takes jobs from the queue until it is closed. The player is used by this thread alone.

    Args:
        ended: told of each job, on this thread.

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

    def run(self) -> None:
        try:
            self._player.warm_up()
            self.ready.set()
            while (job_id := self._queue.take()) is not None:
                self._serve(job_id)
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

    def _serve(self, job_id: str) -> None:
        with self._lock:
            self._current, self._unwanted = job_id, False
        job = self._store.begin(job_id, time.time())
        ended = self._make(job) if job is not None else None
        with self._lock:
            self._current = ""
        if ended is not None:
            self._ended(ended)

    def _make(self, job: Job) -> Ended:
        try:
            timings = self._write(job)
            return Ended(
                job=job,
                status="completed",
                size=self._results.path(job.id).stat().st_size,
                timings=timings,
            )
        except Cancelled:
            return Ended(job=job, status="cancelled", again=not self._unwanted)
        except FastWanError as error:
            return Ended(job=job, status="failed", error=(_code(error), str(error)))
        except Exception as error:
            what = f"{type(error).__name__}: {first_line(error)}"
            return Ended(job=job, status="failed", error=("internal_error", what))

    def _write(self, job: Job) -> Timings:
        """Make a job's video and its file."""
        asked, channel = job.asked, self._channels.open(job.id)
        channel.publish(Event("started", {"attempt": job.attempts}))
        written, decoded = Timings(), 0
        with open_output(
            self._results.output(job.id), height=asked.height, width=asked.width
        ) as write:

            def on_step(done: int) -> None:
                channel.publish(Event("step", {"step": done, "steps": asked.steps}))

            def on_frame(frame: Array) -> None:
                nonlocal decoded
                with written.measure("write"):
                    write(frame)
                decoded += 1
                channel.publish(
                    Event("frames", {"frames": decoded, "num_frames": asked.num_frames})
                )

            watch = Watch(on_step=on_step, on_frame=on_frame, cancelled=self._is_cancelled)
            timings = self._player.play(asked, watch)
            begin = time.perf_counter()
        written["write"] = written.get("write", 0.0) + time.perf_counter() - begin
        timings.update(written)
        assert job.started_at is not None
        timings["queue"] = max(0.0, job.started_at - job.created_at)
        return timings

    def _is_cancelled(self) -> bool:
        with self._lock:
            return self._unwanted or self._stopping


def _code(error: FastWanError) -> str:
    """Name of an error's class as the API writes names."""
    name = type(error).__name__
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
