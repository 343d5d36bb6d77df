"""Replicas in this process, behind calls as Ray Serve makes them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from queue import SimpleQueue

from fastwan.serve.jobs import Asked
from fastwan.serve.player import Player
from fastwan.serve.ray.messages import Message
from fastwan.serve.ray.remote_player import RemotePlayer
from fastwan.serve.ray.replica import Described, Replica
from testkit.fake_player import WAIT


class GoneError(Exception):
    """The replica is gone, or the call was cancelled."""


class FakeAnswer:
    """A streamed answer of a replica.

    Args:
        dies_at: messages after which its process is gone; None for never.
    """

    def __init__(self, replica: Replica, asked: Asked, dies_at: int | None = None) -> None:
        self._told: SimpleQueue[Message | GoneError | None] = SimpleQueue()
        self._dies_at = dies_at
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(self._run(replica, asked))
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._task])
        self._thread.start()

    async def _run(self, replica: Replica, asked: Asked) -> None:
        try:
            async for message in replica.play(asked):
                self._told.put(message)
            self._told.put(None)
        except asyncio.CancelledError:
            self._told.put(GoneError())

    def __iter__(self) -> Iterator[Message]:
        seen = 0
        while seen != self._dies_at:
            message = self._told.get(timeout=WAIT)
            if isinstance(message, GoneError):
                raise message
            if message is None:
                self._thread.join()
                return
            yield message
            seen += 1
        raise GoneError

    def cancel(self) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)


class FakeReplicas:
    """Calls go to one replica after the other.

    Attributes:
        deaths: for each further call, the messages after which its replica is gone.
    """

    def __init__(self, *players: Player) -> None:
        self.replicas = [Replica(each) for each in players]
        self.deaths: list[int | None] = []
        self.calls = 0

    def call(self, asked: Asked) -> FakeAnswer:
        replica = self.replicas[self.calls % len(self.replicas)]
        self.calls += 1
        return FakeAnswer(replica, asked, self.deaths.pop(0) if self.deaths else None)

    def player(self) -> RemotePlayer:
        """These as the server's player."""
        described = asyncio.run(self.replicas[0].describe())
        assert isinstance(described, Described)
        return RemotePlayer(self.call, described, gone=(GoneError,))
