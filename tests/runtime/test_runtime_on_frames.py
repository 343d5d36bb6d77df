"""Frames as they are decoded, on every device: in order, the callee's own, equal to the video's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from fastwan.bundle import open_bundle
from fastwan.errors import BadInput
from fastwan.runtime.device.choice import DeviceChoice
from fastwan.runtime.device.components import DeviceComponents
from fastwan.runtime.pipeline import FastWanPipeline
from fastwan.runtime.request import Request
from fastwan.runtime.timings import Timings


@pytest.fixture(params=["cpu", "device"])
def pipe(
    request: pytest.FixtureRequest, bundle: Any, host_device: Any, host_platform: Callable
) -> FastWanPipeline:
    if request.param == "cpu":
        return FastWanPipeline.from_bundle(bundle.root, "cpu")
    opened = open_bundle(bundle.root)
    components = DeviceComponents(opened, host_platform(host_device))
    return FastWanPipeline(opened, DeviceChoice("cuda", ""), components)


@pytest.mark.parametrize("stepwise", [False, True])
def test_chunks_are_the_video(pipe: FastWanPipeline, stepwise: bool) -> None:
    expected = pipe("red fox", seed=7, output_type="uint8").frames[0]
    chunks: list[np.ndarray] = []
    seen: list[int] = []
    request = Request(
        prompt="red fox",
        seed=7,
        output_type="uint8",
        on_step=(lambda step, *_: seen.append(step)) if stepwise else None,
        on_frames=chunks.append,
    )
    output = pipe.make(request)
    assert [len(chunk) for chunk in chunks] == [1, 4, 4]
    assert {chunk.dtype for chunk in chunks} == {np.dtype(np.uint8)}
    # Kept until the end: they are no views of memory that is written again.
    np.testing.assert_array_equal(np.concatenate(chunks), expected)
    np.testing.assert_array_equal(output.frames[0], expected)
    assert seen == ([0, 1, 2] if stepwise else [])


def test_a_call_hands_out_the_chunks_of_each_of_its_videos(pipe: FastWanPipeline) -> None:
    chunks: list[np.ndarray] = []
    videos = pipe(["red fox", "a"], output_type="uint8", on_frames=chunks.append).frames
    assert [len(chunk) for chunk in chunks] == [1, 4, 4] * 2
    np.testing.assert_array_equal(np.concatenate(chunks), np.concatenate(list(videos)))


def test_latents_are_decoded_in_chunks_likewise(pipe: FastWanPipeline) -> None:
    latents = pipe("red fox", output_type="latent").frames
    expected = np.stack([frame.copy() for frame in pipe.decode(latents)])
    events: list[str] = []
    chunks: list[np.ndarray] = []
    decode = pipe.components.decode

    def told(*args: Any) -> Iterator[np.ndarray]:
        for chunk in decode(*args):
            events.append("decoded")
            yield chunk

    def on_frames(chunk: np.ndarray) -> None:
        events.append("handed out")
        chunks.append(chunk)

    pipe.components.decode = told  # type: ignore[method-assign]
    frames = np.stack([frame.copy() for frame in pipe.decode(latents, on_frames=on_frames)])
    assert events == ["decoded", "handed out"] * 3
    np.testing.assert_array_equal(np.concatenate(chunks), expected)
    np.testing.assert_array_equal(frames, expected)


def test_the_first_frame_is_a_stage_within_the_whole(pipe: FastWanPipeline) -> None:
    timings = Timings()
    frames = pipe.frames(Request(prompt="a"), timings=timings)
    next(frames)
    known = timings["first_frame"]
    assert known > 0
    assert len(list(frames)) == 8
    assert timings["first_frame"] == known


def test_an_error_of_the_callee_ends_the_call_and_no_other(pipe: FastWanPipeline) -> None:
    expected = pipe("a", output_type="uint8").frames

    def fail(_: Any) -> None:
        raise RuntimeError("the viewer has gone")

    with pytest.raises(RuntimeError, match="the viewer has gone"):
        pipe("a", on_frames=fail)
    np.testing.assert_array_equal(pipe("a", output_type="uint8").frames, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_type": "latent"}, "latents are not decoded"),
        ({"on_frames": 3}, r"3 \(int\) cannot be called"),
    ],
)
def test_what_cannot_be_handed_out_is_refused(options: dict[str, Any], message: str) -> None:
    usual: dict[str, Any] = {"prompt": "a", "on_frames": print}
    Request(**usual)
    with pytest.raises(BadInput, match=message):
        Request(**usual | options)
