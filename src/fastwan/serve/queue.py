"""Jobs that wait: a bounded number, and one client's turn after another's."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque


class QueueFull(Exception):
    """No further job is taken.

    Attributes:
        of_client: the client has its share; otherwise the whole queue is full.
    """

    def __init__(self, of_client: bool) -> None:
        super().__init__()
        self.of_client = of_client


class FairQueue:
    """Ids of jobs, a queue for each client; the clients take turns. For any number of threads.

    Args:
        size: jobs that may wait.
        share: of these, what one client may have.
    """

    def __init__(self, size: int, share: int) -> None:
        self.size = size
        self._share = share
        self._waiting: OrderedDict[str, deque[str]] = OrderedDict()
        self._clients: dict[str, str] = {}
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        with self._changed:
            return len(self._clients)

    def require_room(self, client: str) -> None:
        """Refuse a further job of a client.

        Raises:
            QueueFull: likewise.
        """
        with self._changed:
            if len(self._clients) >= self.size:
                raise QueueFull(of_client=False)
            if len(self._waiting.get(client, ())) >= self._share:
                raise QueueFull(of_client=True)

    def put(self, job_id: str, client: str, *, first: bool = False) -> None:
        """Let a job wait; one that was accepted before is taken whatever the size.

        Args:
            first: before the client's other jobs.
        """
        with self._changed:
            jobs = self._waiting.setdefault(client, deque())
            if first:
                jobs.appendleft(job_id)
            else:
                jobs.append(job_id)
            self._clients[job_id] = client
            self._changed.notify()

    def take(self) -> str | None:
        """The next job, as soon as there is one; None once the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._clients)
            if self._closed:
                return None
            client, jobs = self._waiting.popitem(last=False)
            job_id = jobs.popleft()
            if jobs:
                self._waiting[client] = jobs  # behind the other clients
            del self._clients[job_id]
            return job_id

    def remove(self, job_id: str) -> bool:
        """Take a job out; False where it does not wait."""
        with self._changed:
            client = self._clients.pop(job_id, None)
            if client is None:
                return False
            self._waiting[client].remove(job_id)
            if not self._waiting[client]:
                del self._waiting[client]
            return True

    def place(self, job_id: str) -> int | None:
        """Jobs that are taken before this one; None where it does not wait."""
        with self._changed:
            client = self._clients.get(job_id)
            if client is None:
                return None
            own = self._waiting[client].index(job_id)
            order = list(self._waiting)
            turn = order.index(client)
            # Each client ahead has one turn more by then than each one behind.
            others = (
                min(len(self._waiting[each]), own + (index < turn))
                for index, each in enumerate(order)
                if each != client
            )
            return own + sum(others)

    def close(self) -> None:
        """Hand out nothing more; what waits stays in the store."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
