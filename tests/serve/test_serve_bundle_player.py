"""A bundle as the server's player, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastwan.errors import BadInput
from fastwan.serve.bundle_player import BundlePlayer
from fastwan.serve.jobs import Asked
from fastwan.serve.offer import resolve
from fastwan.serve.player import Cancelled, State, Watch
from fastwan.serve.wire import CreateVideo

pytestmark = pytest.mark.trt


@pytest.fixture(scope="module")
def player(tiny_bundle: Path) -> Iterator[BundlePlayer]:
    player = BundlePlayer.open(tiny_bundle, "cpu")
    player.warm_up()
    yield player
    player.close()


def asked(player: BundlePlayer) -> Asked:
    request = CreateVideo(prompt="A red fox", seed=7)
    return resolve(player.offer, request, longest_prompt=100)


class Watched:
    """Notes what happens, and cancels after some of it.

    Args:
        last: what happens last, ``("step", 2)`` or ``("frame", 1)``; None for all of it.
    """

    def __init__(self, last: tuple[str, int] | None = None) -> None:
        self.seen: list[tuple[str, int]] = []
        self.frames: list[Any] = []
        self._last = last

    def on_step(self, step: int) -> None:
        self.seen.append(("step", step))

    def on_frame(self, frame: Any) -> None:
        self.frames.append(frame)
        self.seen.append(("frame", len(self.frames)))

    @property
    def watch(self) -> Watch:
        return Watch(
            on_step=self.on_step,
            on_frame=self.on_frame,
            cancelled=lambda: self.seen[-1:] == [self._last],
        )


def test_the_offer_is_the_bundles(player: BundlePlayer, tiny_bundle: Path) -> None:
    offer = player.offer
    assert [(s.width, s.height, s.num_frames) for s in offer.shapes] == [(160, 96, 9)]
    assert (offer.fps, offer.device, "dmd" in offer.samplers) == (16, "cpu", True)
    assert player.runs_on == "device cpu"
    assert player.state() == State(launch="none", device_bytes=0)


def test_steps_and_frames_are_told_in_order(player: BundlePlayer) -> None:
    watched = Watched()
    timings = player.play(asked(player), watched.watch)
    steps, frames = range(1, 4), range(1, 10)
    assert watched.seen == [*(("step", s) for s in steps), *(("frame", f) for f in frames)]
    assert {"text", "noise", "step_0", "step_2", "decode", "first_frame", "total"} <= timings.keys()
    assert timings["first_frame"] <= timings["total"]


@pytest.mark.parametrize("last", [("step", 2), ("frame", 1)])
def test_a_video_ends_where_it_is_cancelled_and_the_next_is_whole(
    player: BundlePlayer, last: tuple[str, int]
) -> None:
    whole, cut, again = Watched(), Watched(last), Watched()
    player.play(asked(player), whole.watch)
    with pytest.raises(Cancelled):
        player.play(asked(player), cut.watch)
    assert cut.seen[-1] == last
    player.play(asked(player), again.watch)
    # Nobody wrote to the first frames meanwhile.
    np.testing.assert_array_equal(again.frames, whole.frames)


def test_a_video_that_was_cancelled_before_is_not_begun(player: BundlePlayer) -> None:
    watched = Watched()
    never = Watch(on_step=watched.on_step, on_frame=watched.on_frame, cancelled=lambda: True)
    with pytest.raises(Cancelled):
        player.play(asked(player), never)
    assert watched.seen == []


def test_what_is_no_bundle_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        BundlePlayer.open(tmp_path, "cpu")
