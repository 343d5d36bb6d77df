"""A bundle on a device as the server's player."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastwan.bundle import open_bundle
from fastwan.runtime.device.choice import DeviceChoice
from fastwan.runtime.device.components import DeviceComponents
from fastwan.runtime.pipeline import FastWanPipeline
from fastwan.runtime.recording.machine import DeviceError
from fastwan.runtime.recording.memory_plan import bundle_memory
from fastwan.serve.bundle_player import BundlePlayer
from fastwan.serve.offer import resolve
from fastwan.serve.player import State, Watch
from fastwan.serve.wire import CreateVideo


@pytest.fixture
def player(bundle: Any, host_device: Any, host_platform: Any) -> BundlePlayer:
    opened = open_bundle(bundle.root)
    components = DeviceComponents(opened, host_platform(host_device))
    return BundlePlayer(FastWanPipeline(opened, DeviceChoice("cuda"), components))


def test_a_device_makes_the_frames_of_the_cpu_step_by_step(
    bundle: Any, player: BundlePlayer
) -> None:
    seen: list[Any] = []
    watch = Watch(
        on_step=seen.append,
        on_frame=lambda frame: seen.append(frame.copy()),
        cancelled=lambda: False,
    )
    player.warm_up()
    asked = resolve(player.offer, CreateVideo(prompt="a fox", seed=3), longest_prompt=9)
    player.play(asked, watch)
    alone = FastWanPipeline.from_bundle(bundle.root, "cpu")("a fox", seed=3, output_type="uint8")
    steps = player.offer.samplers[asked.sampler].steps
    assert seen[:steps] == list(range(1, steps + 1))
    np.testing.assert_array_equal(seen[steps:], alone.frames[0])


@pytest.mark.parametrize("launch", ["graph", "eager"])
@pytest.mark.filterwarnings("ignore:no CUDA graph:RuntimeWarning")
def test_the_state_tells_how_the_device_is_driven(
    bundle: Any, player: BundlePlayer, host_device: Any, launch: Any
) -> None:
    if launch == "eager":
        host_device.faults["begin_capture"] = DeviceError("not permitted", "capture")
    player.warm_up()
    total = bundle_memory(open_bundle(bundle.root)).total
    assert player.state() == State(launch=launch, device_bytes=total)
    assert total > 0
