"""Several workers on one queue, handled as one."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from fastwan.serve.worker import Worker


class Workers:
    """As many videos at a time as there are workers.

    Args:
        workers: of one queue; at least one.
    """

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers

    @property
    def ready(self) -> threading.Event:
        """Set once one of them can make videos."""
        events = [each.ready for each in self._workers]
        return next((each for each in events if each.is_set()), events[0])

    @property
    def fault(self) -> Exception | None:
        """What ended one of them early, or None."""
        return next((each.fault for each in self._workers if each.fault is not None), None)

    def start(self) -> None:
        for each in self._workers:
            each.start()

    def cancel(self, job_id: str) -> bool:
        """End a job after the step or frame that is being made; False where nobody makes it."""
        return any(each.cancel(job_id) for each in self._workers)

    def stop(self) -> None:
        """End the jobs that are being made, to be made again by the next server."""
        for each in self._workers:
            each.stop()

    def is_alive(self) -> bool:
        """Whether one of them may still make something."""
        return any(each.is_alive() for each in self._workers)

    def join(self, timeout: float) -> None:
        """Wait until all have ended, for `timeout` seconds at most."""
        deadline = time.monotonic() + timeout
        for each in self._workers:
            each.join(max(0.0, deadline - time.monotonic()))
