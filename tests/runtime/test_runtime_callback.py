"""The callback at the end of a step behaves as diffusers' own tests expect of a pipeline."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
import torch

from fastwan.bundle import open_bundle
from fastwan.errors import BadInput
from fastwan.runtime.device.choice import DeviceChoice
from fastwan.runtime.device.components import DeviceComponents
from fastwan.runtime.model.noise import draw, generator_for
from fastwan.runtime.pipeline import FastWanPipeline
from fastwan.runtime.request import Request


@pytest.fixture
def on_cpu(bundle: Any) -> FastWanPipeline:
    return FastWanPipeline.from_bundle(bundle.root, "cpu")


@pytest.fixture
def on_device(bundle: Any, host_device: Any, host_platform: Any) -> FastWanPipeline:
    opened = open_bundle(bundle.root)
    components = DeviceComponents(opened, host_platform(host_device))
    return FastWanPipeline(opened, DeviceChoice("cuda"), components)


@pytest.fixture(params=["on_cpu", "on_device"])
def pipe(request: pytest.FixtureRequest) -> FastWanPipeline:
    return request.getfixturevalue(request.param)


def latents_of_steps(pipe: FastWanPipeline, **arguments: Any) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []

    def keep(_pipe: Any, _step: int, _timestep: int, given: dict[str, Any]) -> dict[str, Any]:
        seen.append(given["latents"])
        return given

    pipe("red fox", output_type="latent", callback_on_step_end=keep, **arguments)
    return seen


def test_a_callback_is_given_what_it_asks_for(pipe: FastWanPipeline) -> None:
    seen: list[dict[str, Any]] = []

    def callback(_pipe: Any, _step: int, _timestep: int, given: dict[str, Any]) -> dict[str, Any]:
        seen.append(dict(given))
        return given

    offered = pipe._callback_tensor_inputs
    for names in (["latents"], list(offered), []):
        seen.clear()
        frames = pipe(
            "red fox", callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names
        ).frames
        assert [list(given) for given in seen] == [names] * 3
        np.testing.assert_array_equal(frames, pipe("red fox").frames)
        if names == list(offered):
            embeds = torch.from_numpy(pipe.embed("red fox").astype(np.float32))
            assert torch.equal(seen[0]["prompt_embeds"].float(), embeds)
            assert seen[0]["negative_prompt_embeds"] is None


def test_what_the_last_step_leaves_is_the_result(pipe: FastWanPipeline) -> None:
    def zero(pipeline: Any, step: int, _timestep: int, given: dict[str, Any]) -> dict[str, Any]:
        if step == pipeline.num_timesteps - 1:
            given["latents"] = torch.zeros_like(given["latents"])
        return given

    offered = pipe._callback_tensor_inputs
    output = pipe(
        "a",
        output_type="latent",
        callback_on_step_end=zero,
        callback_on_step_end_tensor_inputs=offered,
    )
    assert output[0].abs().sum() == 0
    assert pipe.num_timesteps == 3


def test_a_callback_object_says_which_tensors_it_takes(pipe: FastWanPipeline) -> None:
    class Callback:
        tensor_inputs = ("prompt_embeds",)

        def __init__(self) -> None:
            self.seen: list[list[str]] = []

        def __call__(self, _pipe: Any, _step: int, _timestep: int, given: Any) -> Any:
            self.seen.append(list(given))
            return given

    callback = Callback()
    pipe("a", callback_on_step_end=callback)
    assert callback.seen == [["prompt_embeds"]] * 3


def test_latents_that_are_changed_in_place_count(
    on_cpu: FastWanPipeline, on_device: FastWanPipeline
) -> None:
    def halve(_pipe: Any, step: int, _timestep: int, given: dict[str, Any]) -> None:
        if step == 0:
            given["latents"].mul_(0.5)

    def return_half(_pipe: Any, step: int, _timestep: int, given: Any) -> dict[str, Any]:
        return {"latents": given["latents"] * 0.5} if step == 0 else {}

    expected = on_cpu("a", output_type="latent", callback_on_step_end=return_half).frames
    for pipeline in (on_cpu, on_device):
        made = pipeline("a", output_type="latent", callback_on_step_end=halve).frames
        assert torch.equal(made, expected)
    assert not torch.equal(expected, on_cpu("a", output_type="latent").frames)


def zero_embeds(given: dict[str, Any]) -> None:
    given["prompt_embeds"].zero_()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda given: torch.zeros(1), r"returned tensor\(\[0\.\]\) \(Tensor\), not a dict"),
        (
            lambda given: {"latents": [0.0]},
            r"\[0\.0\] \(list\) is no tensor.*latents of the callback",
        ),
        (lambda given: {"latents": given["latents"][:, :1]}, "latents of the callback have shape"),
        (lambda given: {"latents": given["latents"].long()}, "dtype int64"),
        (lambda given: {"prompt_embeds": given["prompt_embeds"] * 2}, "prompt_embeds cannot"),
        (zero_embeds, "prompt_embeds cannot change"),
        (lambda given: {"prompt_embeds": "red fox"}, "prompt_embeds cannot change"),
        (lambda given: {"negative_prompt_embeds": given["prompt_embeds"]}, "no guidance"),
    ],
)
def test_what_a_callback_may_not_return_is_refused(
    pipe: FastWanPipeline, spoil: Any, message: str
) -> None:
    names = ["latents", "prompt_embeds"]

    def callback(_pipe: Any, _step: int, _timestep: int, given: dict[str, Any]) -> Any:
        return spoil(given)

    pipe("a", callback_on_step_end=lambda *_: None, callback_on_step_end_tensor_inputs=names)
    with pytest.raises(BadInput, match=message):
        pipe("a", callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names)
    # The embeddings that are kept for the next video are the ones they were.
    np.testing.assert_array_equal(
        pipe("a", output_type="latent").frames,
        pipe(prompt_embeds=pipe.embed("a"), output_type="latent").frames,
    )


@pytest.mark.parametrize("step", [0, 1, 2])
def test_interrupt_ends_the_call_with_the_latents_so_far(pipe: FastWanPipeline, step: int) -> None:
    expected = latents_of_steps(pipe)
    steps: list[int] = []

    def stop(pipeline: Any, index: int, _timestep: int, given: dict[str, Any]) -> dict[str, Any]:
        steps.append(index)
        pipeline._interrupt = index == step
        assert pipeline.interrupt == (index == step)
        return given

    output = pipe("red fox", output_type="latent", callback_on_step_end=stop)
    assert steps == list(range(step + 1))
    assert torch.equal(output.frames, expected[step])
    frames = pipe("red fox", callback_on_step_end=stop).frames
    assert frames.shape == (1, 9, 16, 32, 3)
    # Nothing of it is left for the next call.
    assert not pipe.interrupt
    assert torch.equal(pipe("red fox", output_type="latent").frames, expected[-1])


def test_what_the_interrupting_callback_returns_is_decoded(pipe: FastWanPipeline) -> None:
    def stop(pipeline: Any, _step: int, _timestep: int, given: dict[str, Any]) -> dict[str, Any]:
        pipeline._interrupt = True
        return {"latents": given["latents"] * 0}

    assert not pipe("a", output_type="latent", callback_on_step_end=stop).frames.any()


def test_an_exception_after_an_interrupt_leaves_nothing_behind(pipe: FastWanPipeline) -> None:
    def cancel(pipeline: Any, *_: Any) -> None:
        pipeline._interrupt = True
        raise RuntimeError("operation cancelled")

    before = pipe("a").frames
    with pytest.raises(RuntimeError, match="operation cancelled"):
        pipe("a", callback_on_step_end=cancel)
    np.testing.assert_array_equal(pipe("a").frames, before)
    assert len(latents_of_steps(pipe)) == 3


def test_an_interrupt_begins_no_further_video(pipe: FastWanPipeline) -> None:
    seen: list[int] = []

    def stop(pipeline: Any, step: int, _timestep: int, given: dict[str, Any]) -> dict[str, Any]:
        seen.append(step)
        pipeline._interrupt = len(seen) == 4  # the first step of the second video
        return given

    output = pipe(["a", "red fox", "fox"], seed=3, callback_on_step_end=stop)
    assert seen == [0, 1, 2, 0]
    assert output.frames.shape[0] == 2
    assert output.seeds == (3, 3)
    np.testing.assert_array_equal(output.frames[0], pipe("a", seed=3).frames[0])


def test_an_interrupt_is_of_the_call_whose_callback_it_is(on_cpu: FastWanPipeline) -> None:
    """Two calls that are in their first step at once; one of them stops itself."""
    both = threading.Barrier(2)
    steps: dict[str, list[int]] = {"stops": [], "goes on": []}

    def work(name: str) -> None:
        def callback(pipeline: Any, step: int, _timestep: int, given: Any) -> dict[str, Any]:
            steps[name].append(step)
            if step == 0:
                both.wait(60)
                if name == "stops":
                    pipeline._interrupt = True
                both.wait(60)
            return given

        on_cpu("a", output_type="latent", callback_on_step_end=callback)

    threads = [threading.Thread(target=work, args=(name,)) for name in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert steps == {"stops": [0], "goes on": [0, 1, 2]}


def test_another_thread_stops_every_call(pipe: FastWanPipeline) -> None:
    seen: list[int] = []

    def press() -> None:
        pipe._interrupt = True

    def callback(_pipe: Any, step: int, *_: Any) -> None:
        seen.append(step)
        button = threading.Thread(target=press)
        button.start()
        button.join()

    pipe("a", callback_on_step_end=callback)
    assert seen == [0]


def test_a_call_that_is_stopped_while_it_waits_makes_no_step(on_device: FastWanPipeline) -> None:
    """As diffusers does: frames are made of the noise."""
    inside, stopped = threading.Event(), threading.Event()
    results: dict[str, Any] = {}

    def hold(_pipe: Any, _step: int, *_: Any) -> None:
        inside.set()
        assert stopped.wait(60)

    def first() -> None:
        results["first"] = on_device("a", output_type="latent", callback_on_step_end=hold)

    def second() -> None:
        results["second"] = on_device("a", seed=3, output_type="latent")

    threads = [threading.Thread(target=work) for work in (first, second)]
    threads[0].start()
    assert inside.wait(60)
    threads[1].start()
    while len(on_device._calls._open) < 2:
        time.sleep(0.001)
    on_device._interrupt = True
    stopped.set()
    for thread in threads:
        thread.join()
    noise, *_ = draw((1, 16, 3, 2, 4), on_device.schedule(), generator_for(None, 3))
    np.testing.assert_array_equal(results["second"].frames, noise)


def test_a_streamed_video_is_stopped_by_its_callback_too(pipe: FastWanPipeline) -> None:
    steps: list[int] = []

    def stop(step: int, _timestep: int, _latents: torch.Tensor) -> None:
        steps.append(step)
        pipe._interrupt = True

    frames = pipe.frames(Request(prompt="a", on_step=stop))
    assert len(list(frames)) == 9
    assert steps == [0]
    assert not pipe.interrupt
