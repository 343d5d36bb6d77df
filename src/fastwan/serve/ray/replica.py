"""The deployment that makes videos: one device, one video at a time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from fastwan.errors import BadInput, first_line
from fastwan.serve.jobs import Asked
from fastwan.serve.offer import Offer
from fastwan.serve.player import Cancelled, Player, State, Watch
from fastwan.serve.ray.messages import Broken, Frame, Made, Message, Step, failed


@dataclass(frozen=True, kw_only=True)
class Described:
    """What the ingress has to know of a replica before its first video."""

    offer: Offer
    state: State


class Replica:
    """Hands a player's steps and frames on as they come.

    Args:
        player: used by one thread alone; warm when the constructor returns.

    Raises:
        FastWanError: the player cannot be made ready.
    """

    def __init__(self, player: Player) -> None:
        self._player = player
        self._thread = ThreadPoolExecutor(1, "fastwan-player")
        self._fault = ""
        self._thread.submit(player.warm_up).result()

    async def describe(self) -> Described:
        return Described(offer=self._player.offer, state=self._player.state())

    async def play(self, asked: Asked) -> AsyncIterator[Message]:
        """Make a video; the last message is `Made`, `Failed` or `Broken`.

        A caller that goes away ends the video after its step. The replica counts as busy until
        then.
        """
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[Message | None] = asyncio.Queue()
        unwanted = threading.Event()

        def tell(message: Message | None) -> None:
            loop.call_soon_threadsafe(told.put_nowait, message)

        watch = Watch(
            on_step=lambda done: tell(Step(done)),
            on_frame=lambda frame: tell(Frame(frame)),
            cancelled=unwanted.is_set,
        )
        made = loop.run_in_executor(self._thread, partial(self._play, asked, watch))
        made.add_done_callback(lambda _: told.put_nowait(None))
        try:
            while (message := await told.get()) is not None:
                yield message
            yield made.result()
        finally:
            unwanted.set()
            await asyncio.wait([made])

    def _play(self, asked: Asked, watch: Watch) -> Message:
        """Make a video, on the player's thread; how that ended."""
        try:
            timings = self._player.play(asked, watch)
        except (Cancelled, BadInput) as error:
            return failed(error)
        except Exception as error:
            # A device that failed once may fail for good: then another replica takes over.
            try:
                self._player.warm_up()
            except Exception:
                self._fault = f"{type(error).__name__}: {first_line(error)}"
                return Broken(self._fault)
            return failed(error)
        return Made(timings, self._player.state())

    def check_health(self) -> None:
        """Asked by Ray Serve, which replaces a replica whose player is broken."""
        if self._fault:
            raise RuntimeError(self._fault)

    def close(self) -> None:
        """Give the device back, once no video is being made."""
        self._thread.submit(self._player.close).result()
        self._thread.shutdown()
