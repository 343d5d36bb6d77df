"""Jobs from their acceptance to their end; what the routes call, on any thread."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from fastwan.errors import BadInput, EnvironmentLacks
from fastwan.serve.events import Channels, Event
from fastwan.serve.jobs import Job, new_id
from fastwan.serve.metrics import Metrics
from fastwan.serve.offer import Offer, resolve, serves
from fastwan.serve.player import Player
from fastwan.serve.queue import FairQueue, QueueFull
from fastwan.serve.results import Results
from fastwan.serve.settings import Settings
from fastwan.serve.store import Store
from fastwan.serve.wire import CreateVideo
from fastwan.serve.worker import Ended, Worker
from fastwan.serve.workers import Workers

_SWEEP_SECONDS = 30.0
"""Between two searches for jobs whose time is over."""

_DRAIN_TICK = 0.1


class Draining(Exception):
    """The server is about to end and takes no further job."""


class KeyReused(Exception):
    """An idempotency key came with another request than before."""


class Service:
    """One player, its jobs and their videos.

    Args:
        player: closed with the service.

    Raises:
        BadInput: the folder is another server's or holds something else.
        EnvironmentLacks: it cannot be written.
    """

    def __init__(self, settings: Settings, player: Player) -> None:
        self.settings = settings
        self.player = player
        self.channels = Channels()
        self.queue = FairQueue(settings.queue_size, settings.client_share)
        self.metrics = Metrics(lambda: len(self.queue), player.state)
        self._accepting = threading.Lock()
        self._ending = threading.Event()
        self._folder_lock = _locked(settings.folder)
        try:
            self.store = Store(settings.folder / "jobs.sqlite3")
            self.results = Results(settings.folder / "videos")
        except BaseException:
            self._folder_lock.release()
            raise
        parts = (player, self.store, self.queue, self.channels, self.results, self._on_ended)
        self.worker = Workers([Worker(*parts) for _ in range(settings.slots)])
        self._sweeper = threading.Thread(target=self._sweep, name="fastwan-sweeper", daemon=True)
        self._seconds_a_video = 1.0
        self._deadline = 0.0

    @property
    def offer(self) -> Offer:
        return self.player.offer

    @property
    def is_draining(self) -> bool:
        return self._ending.is_set()

    def retry_after(self, full: QueueFull | None = None) -> int:
        """Seconds after which there is room.

        Where the queue, or a client's share of it, is full, these are the seconds until half of it
        is made: by then many requests find room, and until then the player has work.
        """
        videos = 1.0
        if full is not None:
            videos = (self.settings.client_share if full.of_client else self.queue.size) / 2
        return max(1, round(videos * self._seconds_a_video))

    def start(self) -> None:
        """Take up what the last server left, and begin."""
        self._recover()
        self.worker.start()
        self._sweeper.start()

    def _recover(self) -> None:
        """Queue again what waited or was interrupted, where it can still be made."""
        for job in self.store.unfinished():
            if error := self._hopeless(job):
                self._finish(Ended(job=job, status="failed", error=error))
                continue
            self.store.queue_again(job.id, counted=True)
            self._enqueue(job)
        self._remove_expired()
        self.results.remove_others(self.store.with_content())

    def _hopeless(self, job: Job) -> tuple[str, str] | None:
        """Code and message of why a job that the last server left is not made any more."""
        if job.status == "in_progress" and job.attempts >= self.settings.attempts:
            times = f"the server ended {job.attempts} times while it made this video"
            return "interrupted", times
        if not serves(self.offer, job.asked):
            return "bundle_changed", "the server now has a bundle that cannot make this video"
        return None

    def submit(
        self, client: str, request: CreateVideo, *, key: str | None = None, digest: str = ""
    ) -> Job:
        """Accept a job, or find the one that was accepted for the same key.

        Args:
            client: who asks.
            key: idempotency key.
            digest: of the request, which tells whether a key comes with the same one.

        Raises:
            BadInput: the bundle cannot make this video.
            KeyReused: the key came with another request before.
            QueueFull: there is no room.
            Draining: the server is about to end.
        """
        asked = resolve(self.offer, request, longest_prompt=self.settings.longest_prompt)
        with self._accepting:
            if key is not None and (known := self.store.of_key(client, key)) is not None:
                job, before = known
                if before != digest:
                    raise KeyReused
                return job
            if self.is_draining:
                raise Draining
            self.queue.require_room(client)
            job = Job(id=new_id(), client=client, asked=asked, created_at=time.time())
            self.store.add(job, key=key, digest=digest)
            self._enqueue(job)
        return job

    def _enqueue(self, job: Job, *, first: bool = False) -> None:
        self.channels.open(job.id).publish(Event("queued"))
        self.queue.put(job.id, job.client, first=first)

    def step(self, job: Job) -> int | None:
        """Steps that are done of a job in progress."""
        channel = self.channels.get(job.id)
        if job.status != "in_progress" or channel is None:
            return None
        last = channel.last("step")
        return int(last.data["step"]) if last else 0

    def cancel(self, job: Job) -> None:
        """End a job that is not finished; one that is being made ends after its step."""
        if not self.worker.cancel(job.id):
            self.queue.remove(job.id)
            self._finish(Ended(job=job, status="cancelled"))

    def remove(self, job: Job) -> None:
        """Forget a job and its video; one that is not finished is cancelled."""
        self.cancel(job)
        self.store.remove(job.id)
        self.results.remove([job.id])

    def _on_ended(self, ended: Ended) -> None:
        """Take what the worker made."""
        if ended.lost:
            self._on_lost(ended.job)
            return
        if ended.again:
            self.store.queue_again(ended.job.id, counted=False)
            self.channels.finish(ended.job.id, "queued")
            return
        if ended.status == "completed":
            self._seconds_a_video += 0.2 * (ended.timings["total"] - self._seconds_a_video)
        self._finish(ended)

    def _on_lost(self, job: Job) -> None:
        """Queue a job again whose maker is gone, but for one that was begun too often."""
        if job.attempts >= self.settings.attempts:
            text = f"what made this video ended {job.attempts} times while it did"
            self._finish(Ended(job=job, status="failed", error=("interrupted", text)))
            return
        self.channels.finish(job.id, "queued")  # what its readers have seen is not what comes
        self.store.queue_again(job.id, counted=True)
        self._enqueue(job, first=True)

    def _finish(self, ended: Ended) -> None:
        job_id, now = ended.job.id, time.time()
        written = self.store.finish(
            job_id,
            ended.status,
            now=now,
            expires_at=now + self.settings.keep_seconds,
            size=ended.size,
            timings=ended.timings,
            error=ended.error,
        )
        if ended.size:  # it was cancelled or removed meanwhile, or others make room
            dropped = self.store.drop_contents(self.settings.keep_bytes) if written else [job_id]
            self.results.remove(dropped)
        if written:
            self.metrics.count_video(ended.status, ended.timings)
        self.channels.finish(job_id, ended.status)

    def _sweep(self) -> None:
        while not self._ending.wait(_SWEEP_SECONDS):
            with suppress(sqlite3.Error, OSError):  # of a full disk: there will be another time
                self._remove_expired()

    def _remove_expired(self) -> None:
        self.results.remove(self.store.remove_expired(time.time(), self.settings.keep_jobs))

    def drain(self) -> None:
        """Take no further job and begin no other; what waits stays for the next server."""
        if not self._ending.is_set():
            self._deadline = time.monotonic() + self.settings.drain_seconds
        self._ending.set()
        self.queue.close()

    def is_drained(self) -> bool:
        """Whether nothing is being made any more; what takes too long is ended."""
        if self.worker.is_alive():
            if self.is_draining and time.monotonic() > self._deadline:
                self.worker.stop()
            return False
        self.channels.close("queued")  # nobody waits for what the next server makes
        return True

    def close(self) -> None:
        """Drain, wait for the video that is being made, and give everything back."""
        self.drain()
        while not self.is_drained():
            self.worker.join(_DRAIN_TICK)
        if self._sweeper.is_alive():
            self._sweeper.join()
        self.player.close()
        self.store.close()
        self._folder_lock.release()


def _locked(folder: Path) -> FileLock:
    """Hold a folder, made where nothing is, for this server alone."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # It is given up on another thread than it is taken on.
        lock = FileLock(folder / "lock", blocking=False, thread_local=False)
        lock.acquire()
    except Timeout:
        raise BadInput(
            "another server uses this folder",
            where=str(folder),
            fix="end it, or name another one with --folder",
        ) from None
    except OSError as error:
        raise EnvironmentLacks(
            f"folder cannot be written: {error.strerror}",
            where=str(folder),
            fix="name another one with --folder",
        ) from error
    return lock
