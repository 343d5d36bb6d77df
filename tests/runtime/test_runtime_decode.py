"""Latents to frames, and memory that is given back and taken again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastwan.bundle import open_bundle
from fastwan.errors import BadInput
from fastwan.runtime.device.choice import DeviceChoice
from fastwan.runtime.device.components import DeviceComponents
from fastwan.runtime.pipeline import FastWanPipeline
from fastwan.runtime.request import Request
from testkit.host_device import HostDevice, make_host_platform


@pytest.fixture(params=["cpu", "device"])
def pipe(bundle: Any, request: pytest.FixtureRequest) -> FastWanPipeline:
    """A pipeline on ONNX Runtime, or on a device in host memory."""
    if request.param == "cpu":
        return FastWanPipeline.from_bundle(bundle.root, "cpu")
    opened = open_bundle(bundle.root)
    components = DeviceComponents(opened, make_host_platform(HostDevice()))
    return FastWanPipeline(opened, DeviceChoice("cuda", ""), components)


class Counted:
    """Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def start(self, stage: str, total: int = 0, unit: str = "") -> None:
        self.told.append((stage, total, unit))

    def advance(self, amount: int = 1, note: str = "") -> None:
        self.told.append(amount)

    def finish(self, note: str = "") -> None:
        self.told.append("end")


def test_the_latents_of_a_video_decode_to_its_frames(pipe: FastWanPipeline) -> None:
    latents = pipe("red fox", seed=7, output_type="latent").frames
    video = pipe("red fox", seed=7, output_type="uint8").frames[0]
    progress = Counted()
    frames = np.stack([frame.copy() for frame in pipe.decode(latents, progress=progress)])
    np.testing.assert_array_equal(frames, video)
    assert progress.told == [("decode", 9, "frames"), *[1] * 9, "end"]
    assert video.std() > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda latents: latents, ""),
        (lambda latents: latents[:, :, :2], r"latents have shape \[1, 16, 2, 2, 4\]"),
        (lambda latents: latents * float("nan"), "NaN"),
        (lambda latents: "latents", "is no tensor or array"),
    ],
)
def test_latents_that_cannot_be_decoded_are_refused(
    pipe: FastWanPipeline, change: Callable[[Any], Any], message: str
) -> None:
    latents = change(pipe("a", output_type="latent").frames)
    if not message:
        assert len(list(pipe.decode(latents))) == 9
        return
    with pytest.raises(BadInput, match=message):
        next(pipe.decode(latents))


def test_an_unloaded_pipeline_plays_again(pipe: FastWanPipeline) -> None:
    video = pipe("red fox", seed=7, output_type="uint8").frames
    pipe.unload()
    np.testing.assert_array_equal(pipe("red fox", seed=7, output_type="uint8").frames, video)


def test_unloading_gives_a_devices_memory_back(bundle: Any) -> None:
    opened, device = open_bundle(bundle.root), HostDevice()
    components = DeviceComponents(opened, make_host_platform(device))
    pipeline = FastWanPipeline(opened, DeviceChoice("cuda", ""), components)
    before = device.free_bytes()
    first = pipeline.make(Request(prompt="a", output_type="uint8")).frames
    assert device.free_bytes() < before
    pipeline.unload()
    assert device.free_bytes() == before
    np.testing.assert_array_equal(
        pipeline.make(Request(prompt="a", output_type="uint8")).frames, first
    )


def test_what_is_decoded_stays_while_the_next_is_made(pipe: FastWanPipeline) -> None:
    latents = pipe("red fox", seed=7, output_type="latent").frames
    frames = pipe.decode(latents)
    first = next(frames).copy()
    pipe("a", seed=3)
    np.testing.assert_array_equal(first, pipe("red fox", seed=7, output_type="uint8").frames[0, 0])
