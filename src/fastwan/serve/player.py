"""What the server asks of whatever makes the videos."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from fastwan.runtime.model.executor import Array
from fastwan.runtime.timings import Timings
from fastwan.serve.jobs import Asked
from fastwan.serve.offer import Offer


class Cancelled(Exception):
    """The video is not wanted any more."""


class Lost(Exception):
    """What made the video is gone, whatever was asked of it: it is to be made again."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """How the making of a video is watched; all are called on the thread that makes it.

    Attributes:
        on_step: told how many steps are done, after each.
        on_frame: given each frame, uint8 [H, W, 3], to keep: nobody writes to it any more.
        cancelled: asked between two steps and between two frames.
    """

    on_step: Callable[[int], None]
    on_frame: Callable[[Array], None]
    cancelled: Callable[[], bool]


@dataclass(frozen=True, kw_only=True)
class State:
    """How a player is doing.

    Attributes:
        launch: ``graph``, or ``eager`` where the same work is enqueued call by call; ``none``
            where nothing is launched.
        device_bytes: device memory that its video takes by plan; 0 without a device.
    """

    launch: Literal["graph", "eager", "none"] = "none"
    device_bytes: int = 0


class Player(Protocol):
    """Makes one video at a time, all on one thread; `offer` and `state` answer on any."""

    @property
    def offer(self) -> Offer: ...

    def warm_up(self) -> None:
        """Open all that a video needs, so that the first takes no longer than others.

        Raises:
            FastWanError: it cannot be opened here.
        """

    def play(self, asked: Asked, watch: Watch) -> Timings:
        """Make a video; the measured seconds by stage.

        Raises:
            Cancelled: `watch` said so.
            FastWanError: it cannot be made.
        """

    def state(self) -> State: ...

    def close(self) -> None: ...
