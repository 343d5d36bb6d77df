"""A session on a device in host memory makes the CPU's video and survives faults."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastwan.config import SAMPLERS
from fastwan.errors import BadInput, EnvironmentLacks
from fastwan.quality.races import find_races
from fastwan.runtime.device.session import Session
from fastwan.runtime.model.noise import draw, generator_for
from fastwan.runtime.model.samplers import schedule_of
from fastwan.runtime.pipeline import FastWanPipeline
from fastwan.runtime.recording.machine import DeviceError

Open = Callable[..., Session]


def noises(session: Session, seed: int = 7) -> list[np.ndarray]:
    shape = session.recording.latents.shape
    return draw(shape, session.recording.schedule, generator_for(None, seed))


def cpu(bundle: Any, prompt: str = "red fox", seed: int = 7, **options: Any) -> np.ndarray:
    options = {"output_type": "uint8", **options}
    frames = FastWanPipeline.from_bundle(bundle.root, "cpu")(prompt, seed=seed, **options).frames
    return frames.numpy() if options["output_type"] == "latent" else frames[0]


def prepare(session: Session, bundle: Any, prompt: str = "red fox") -> None:
    session.prepare(FastWanPipeline.from_bundle(bundle.root, "cpu").embed(prompt))


@pytest.mark.parametrize("sampler", ["unipc", "dmd"])
@pytest.mark.parametrize("late", [0, 1])
def test_one_launch_makes_the_video_of_the_cpu(
    bundle: Any, open_session: Open, host_device: Any, sampler: str, late: int
) -> None:
    # Whichever stream is late, and whatever lies in memory that was used before.
    host_device.late = late
    session = open_session(host_device, sampler=sampler)
    for prompt, seed in (("red fox", 7), ("a", 8), ("red fox", 7)):
        prepare(session, bundle, prompt)
        before = len(host_device.calls)
        frames = session.video(noises(session, seed))
        np.testing.assert_array_equal(frames, cpu(bundle, prompt, seed, sampler=sampler))
        kinds = [call.kind for call in host_device.calls[before:]]
        writes = len(session.recording.noises)
        assert kinds == ["host"] * writes + ["launch", "synchronize", "host", "host"]
    assert find_races(host_device.calls) == []


def test_a_prompt_is_encoded_at_its_own_length(bundle: Any, open_session: Open) -> None:
    session = open_session()
    encoder = FastWanPipeline.from_bundle(bundle.root, "cpu").components.text_encoder
    for prompt in ("a", "red fox runs a", "red fox"):
        rows = encoder._table.gather(encoder.token_ids(prompt))
        hidden = session.encode(rows)
        np.testing.assert_array_equal(hidden, encoder.encode(prompt)[:, : rows.shape[1]])
    with pytest.raises(BadInput, match="7 tokens, the engine takes 6"):
        session.encode(np.zeros((1, 7, 8), np.float32))


def test_steps_one_by_one_give_the_same_latents_and_frames(bundle: Any, open_session: Open) -> None:
    session = open_session()
    prepare(session, bundle)
    seen: list[tuple[int, int]] = []
    clean = session.denoise(noises(session), lambda i, t, _x: seen.append((i, t)))
    assert seen == [(0, 999), (1, 857), (2, 599)]
    np.testing.assert_array_equal(clean, cpu(bundle, output_type="latent"))
    np.testing.assert_array_equal(session.decode(clean), cpu(bundle))


@pytest.mark.parametrize("step", [0, 1, 2])
def test_replaced_latents_are_used_as_on_the_cpu(
    bundle: Any, open_session: Open, step: int
) -> None:
    session = open_session()
    prepare(session, bundle)
    clean = session.denoise(noises(session), lambda i, _t, x: x * 0.5 if i == step else None)

    def halve(_pipe: Any, index: int, _t: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {"latents": kwargs["latents"] * 0.5} if index == step else {}

    expected = cpu(bundle, output_type="latent", callback_on_step_end=halve)
    np.testing.assert_array_equal(clean, expected)


@pytest.mark.parametrize("method", ["begin_capture", "end_capture", "engine"])
def test_without_graphs_the_same_bytes_come_call_by_call(
    bundle: Any, open_session: Open, host_device: Any, method: str
) -> None:
    session = open_session(host_device)
    if method == "engine":
        # The first engine call of the capture, not those of the warm-up before it.
        begin = host_device.begin_capture

        def then_fail(stream: int) -> None:
            begin(stream)
            host_device.faults["engine"] = DeviceError("not permitted", "capture")

        host_device.begin_capture = then_fail
    else:
        host_device.faults[method] = DeviceError("not permitted", "capture")
    with pytest.warns(RuntimeWarning, match="not permitted") as caught:
        session.load()
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare(session, bundle)
        np.testing.assert_array_equal(session.video(noises(session)), cpu(bundle))
        np.testing.assert_array_equal(
            session.denoise(noises(session)), cpu(bundle, output_type="latent")
        )
    assert session.eager_reason == "not permitted"
    assert all(call.kind != "launch" for call in host_device.calls)
    assert find_races(host_device.calls) == []


@pytest.mark.parametrize("method", ["allocate", "allocate_host"])
def test_out_of_memory_says_what_is_needed_and_leaves_the_session_usable(
    bundle: Any, open_session: Open, host_device: Any, method: str
) -> None:
    session = open_session(host_device)
    host_device.faults[method] = DeviceError("cudaErrorMemoryAllocation", "memory")
    with pytest.raises(EnvironmentLacks, match=r"needs 0\.00 GB of device memory .*weights"):
        session.load()
    assert host_device._buffers == {}
    prepare(session, bundle)
    np.testing.assert_array_equal(session.video(noises(session)), cpu(bundle))


def test_a_bundle_that_cannot_fit_is_refused_before_anything_is_allocated(
    open_session: Open, host_device: Any
) -> None:
    session = open_session(host_device)
    host_device.total_bytes = session.plan.total - 1
    with pytest.raises(EnvironmentLacks, match="are free"):
        session.load()
    assert host_device.calls == []
    host_device.total_bytes = session.plan.total
    session.load()


@pytest.mark.parametrize("method", ["launch", "synchronize", "copy"])
def test_a_lost_context_is_said_in_words_by_every_later_call(
    bundle: Any, open_session: Open, host_device: Any, method: str
) -> None:
    session = open_session(host_device)
    prepare(session, bundle)
    host_device.faults[method] = DeviceError("cudaErrorIllegalAddress", "sticky")
    with pytest.raises(EnvironmentLacks, match=r"IllegalAddress.*start a new process"):
        session.decode(np.zeros(session.recording.latents.shape, np.float32))
    for call in (lambda: session.video(noises(session)), session.load):
        with pytest.raises(EnvironmentLacks, match="was lost in this process: cudaErrorIllegal"):
            call()


def test_a_failed_call_that_is_not_sticky_leaves_the_session_usable(
    bundle: Any, open_session: Open, host_device: Any
) -> None:
    session = open_session(host_device)
    prepare(session, bundle)
    host_device.faults["launch"] = DeviceError("cudaErrorLaunchTimeout")
    with pytest.raises(EnvironmentLacks, match="LaunchTimeout"):
        session.video(noises(session))
    np.testing.assert_array_equal(session.video(noises(session)), cpu(bundle))


def test_a_cancelled_run_leaves_the_session_usable(
    bundle: Any, open_session: Open, host_device: Any
) -> None:
    session = open_session(host_device)
    prepare(session, bundle)

    def cancel(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.denoise(noises(session), cancel)
    wait = host_device.synchronize
    interrupts = [KeyboardInterrupt()]

    def interrupted(stream: int) -> None:
        if interrupts:
            raise interrupts.pop()
        wait(stream)

    host_device.synchronize = interrupted
    with pytest.raises(KeyboardInterrupt):
        session.video(noises(session))
    np.testing.assert_array_equal(session.video(noises(session)), cpu(bundle))
    assert find_races(host_device.calls) == []


def test_a_closed_session_gives_everything_back_and_opens_again(
    bundle: Any, open_session: Open, host_device: Any
) -> None:
    session = open_session(host_device)
    session.load()
    session.close()
    assert host_device._buffers == {}
    prepare(session, bundle)
    np.testing.assert_array_equal(session.video(noises(session)), cpu(bundle))


def test_a_bundle_without_a_decoder_still_denoises(bundle: Any, open_session: Open) -> None:
    from fastwan.bundle import open_bundle
    from fastwan.runtime.recording.memory_plan import plan
    from fastwan.runtime.recording.record import record

    manifest = open_bundle(bundle.root).manifest
    engines = {n: e for n, e in manifest.engines.items() if n != "decoder"}
    recording = record(
        manifest.model_copy(update={"engines": engines}), schedule_of(SAMPLERS["unipc"])
    )
    assert recording.frames is None
    assert [stage.name for stage in recording.video] == ["step_0", "step_1", "step_2"]
    assert plan(recording).arena < open_session().plan.unshared


def test_frames_of_a_bundle_without_a_decoder_are_refused(bundle: Any, open_session: Open) -> None:
    session = open_session()
    prepare(session, bundle)
    session.recording.frames = None
    with pytest.raises(
        BadInput, match=r"no decoder \(.*\): build it with --components dit,decoder"
    ):
        session.video(noises(session))
