"""Calls carry their own state: threads on one pipeline, closing, abandoned iterators."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastwan.bundle import open_bundle
from fastwan.errors import BadInput
from fastwan.runtime.device.choice import DeviceChoice
from fastwan.runtime.device.components import DeviceComponents
from fastwan.runtime.device.null import NullDevice
from fastwan.runtime.device.platforms import null_platform
from fastwan.runtime.pipeline import FastWanPipeline
from fastwan.runtime.request import Request

JOBS = (("red fox", 7), ("a", 3), ("a fox", 5))


@pytest.fixture
def pipe(bundle: Any) -> FastWanPipeline:
    return FastWanPipeline.from_bundle(bundle.root, "cpu")


@pytest.fixture
def recorded(bundle: Any) -> FastWanPipeline:
    """A pipeline on the NULL device, which counts and computes nothing."""
    opened = open_bundle(bundle.root)
    components = DeviceComponents(opened, null_platform(opened, NullDevice()))
    return FastWanPipeline(opened, DeviceChoice("cuda", ""), components)


def test_threads_get_the_videos_of_their_own_requests(pipe: FastWanPipeline) -> None:
    alone = [pipe(prompt, seed=seed).frames for prompt, seed in JOBS]
    assert not np.array_equal(alone[0], alone[1])
    start = threading.Barrier(len(JOBS))
    made: dict[tuple[int, int], Any] = {}

    def work(index: int) -> None:
        prompt, seed = JOBS[index]
        start.wait()
        for turn in range(4):
            made[index, turn] = pipe(prompt, seed=seed).frames

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(JOBS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4 * len(JOBS)
    for (index, _), frames in made.items():
        np.testing.assert_array_equal(frames, alone[index])


def test_a_device_serves_one_call_after_the_other(
    recorded: FastWanPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = 0
    most = 0
    video = DeviceComponents.video

    def counted(self: DeviceComponents, *arguments: Any) -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        try:
            yield from video(self, *arguments)
        finally:
            inside -= 1

    monkeypatch.setattr(DeviceComponents, "video", counted)
    threads = [threading.Thread(target=recorded, args=("a",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_callback_that_calls_its_own_pipeline_is_refused_and_not_waited_for(
    recorded: FastWanPipeline,
) -> None:
    def again(pipeline: FastWanPipeline, *_: Any) -> None:
        pipeline("a")

    with pytest.raises(BadInput, match="callback calls the pipeline"):
        recorded("a", callback_on_step_end=again)
    assert recorded("a").frames.shape == (1, 9, 16, 32, 3)


def test_an_abandoned_iterator_does_not_disturb_the_next_call(pipe: FastWanPipeline) -> None:
    expected = pipe("a", seed=3).frames
    frames = pipe.frames(Request(prompt="red fox", seed=7))
    first = next(frames).copy()
    np.testing.assert_array_equal(pipe("a", seed=3).frames, expected)
    again = pipe("red fox", seed=7, output_type="uint8").frames
    np.testing.assert_array_equal(first, again[0, 0])


def test_an_abandoned_iterator_does_not_keep_the_device(recorded: FastWanPipeline) -> None:
    frames = recorded.frames(Request(prompt="a"))
    next(frames)
    assert recorded("a").frames.shape == (1, 9, 16, 32, 3)


@pytest.mark.parametrize("which", ["pipe", "recorded"])
def test_a_closed_pipeline_says_so(which: str, request: pytest.FixtureRequest) -> None:
    pipeline = request.getfixturevalue(which)
    with pipeline as entered:
        assert entered is pipeline
        pipeline("a")
    calls: list[Callable[[], Any]] = [
        lambda: pipeline("a"),
        lambda: pipeline.embed("a"),
        lambda: pipeline.load(),
        lambda: next(pipeline.frames(Request(prompt="a"))),
    ]
    for call in calls:
        with pytest.raises(BadInput, match="the pipeline is closed"):
            call()
    pipeline.close()


def test_closing_gives_the_devices_memory_back(recorded: FastWanPipeline) -> None:
    device = recorded.components._platform.device  # type: ignore[attr-defined]
    before = device.free_bytes()
    recorded("a")
    assert device.free_bytes() < before
    recorded.close()
    assert device.free_bytes() == before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "either prompt or prompt_embeds"),
        ({"prompt": "a", "prompt_embeds": np.zeros((1, 2, 8))}, "either prompt or prompt_embeds"),
        ({"prompt": ["a"]}, "one string"),
        ({"prompt": "a", "output_type": "gif"}, "output_type 'gif'"),
        ({"prompt": "a", "output_type": np.zeros(2)}, "unknown output_type"),
        ({"prompt": "a", "sampler": ["unipc"]}, "sampler is .* not a name"),
        ({"prompt": "a", "seed": 10**5000}, "seed has too many digits"),
    ],
)
def test_a_request_is_checked_when_it_is_made(fields: dict[str, Any], message: str) -> None:
    Request(prompt="a", output_type="latent")
    with pytest.raises(BadInput, match=message):
        Request(**fields)
