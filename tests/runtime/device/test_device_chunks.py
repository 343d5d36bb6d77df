"""Frames that are handed out while a device still decodes are those of the whole video."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastwan.errors import BadInput, EnvironmentLacks, VerificationFailed
from fastwan.quality.races import find_races
from fastwan.runtime.device.null import Call, NullDevice
from fastwan.runtime.device.session import Session
from fastwan.runtime.model.noise import draw, generator_for
from fastwan.runtime.recording.machine import DeviceError
from fastwan.runtime.recording.operations import Signal

Open = Callable[..., Session]

SIZES = [1, 4, 4]
"""Frames of each of three latents."""


def noises(session: Session, seed: int = 7) -> list[np.ndarray]:
    shape = session.recording.latents.shape
    return draw(shape, session.recording.schedule, generator_for(None, seed))


def prepare(session: Session) -> None:
    session.prepare(np.ones(session.recording.prompt_embeds.shape, np.float32))


@pytest.mark.parametrize("late", [0, 1])
def test_each_chunk_is_whole_when_it_is_handed_out(
    open_session: Open, host_device: Any, late: int
) -> None:
    host_device.late = late
    session = open_session(host_device)
    prepare(session)
    whole = [session.video(noises(session, seed)).copy() for seed in (7, 8)]
    assert not np.array_equal(*whole)
    for expected, seed in zip([*whole, whole[0]], (7, 8, 7), strict=True):
        # Copied at once: what the device writes later does not count.
        chunks = [chunk.copy() for chunk in session.video_chunks(noises(session, seed))]
        assert [len(chunk) for chunk in chunks] == SIZES
        np.testing.assert_array_equal(np.concatenate(chunks), expected)
    assert find_races(host_device.calls) == []


@pytest.mark.parametrize("late", [0, 1])
def test_the_first_chunk_comes_before_the_last_is_made(
    open_session: Open, host_device: Any, late: int
) -> None:
    host_device.late = late
    session = open_session(host_device)
    prepare(session)
    chunks = session.video_chunks(noises(session))
    next(chunks)
    left = [work.call for queue in host_device._queues.values() for work in queue]
    copies = [call for call in left if call.kind == "copy"]
    assert len(copies) == len(SIZES) - 1
    list(chunks)
    assert not any(host_device._queues.values())


def test_latents_are_decoded_in_chunks_too(open_session: Open, host_device: Any) -> None:
    session = open_session(host_device)
    prepare(session)
    clean = session.denoise(noises(session))
    expected = session.decode(clean).copy()
    chunks = [chunk.copy() for chunk in session.decode_chunks(clean)]
    assert [len(chunk) for chunk in chunks] == SIZES
    np.testing.assert_array_equal(np.concatenate(chunks), expected)
    assert find_races(host_device.calls) == []


def test_call_by_call_the_chunks_are_the_same(open_session: Open, host_device: Any) -> None:
    session = open_session(host_device)
    prepare(session)
    expected = session.video(noises(session)).copy()
    session.close()
    host_device.faults["begin_capture"] = DeviceError("not permitted", "capture")
    with pytest.warns(RuntimeWarning, match="not permitted"):
        session.load()
    prepare(session)
    chunks = [chunk.copy() for chunk in session.video_chunks(noises(session))]
    np.testing.assert_array_equal(np.concatenate(chunks), expected)


def test_it_is_one_launch_that_the_host_looks_into(open_session: Open) -> None:
    device = NullDevice()
    session = open_session(device)
    prepare(session)
    begin = len(device.calls)
    list(session.video_chunks(noises(session)))
    kinds = [call.kind for call in device.calls[begin:]]
    chunks = ["wait_for", "host", "host", *["wait_for", "host"] * 2]
    # Written: the noise and three words. Read: the latents before the first chunk, and the chunks.
    assert kinds == [*["host"] * 4, "launch", *chunks, "synchronize"]
    assert find_races(device.calls) == []


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_chunk_without_its_signal_is_a_race(open_session: Open, missing: int) -> None:
    device = NullDevice()
    session = open_session(device)
    (decode,) = [stage for stage in session.recording.stages if stage.name == "decode"]
    signals = [op for op in decode.operations if isinstance(op, Signal)]
    decode.operations.remove(signals[missing])
    prepare(session)
    list(session.video_chunks(noises(session)))
    assert find_races(device.calls)


def test_words_of_the_video_before_are_not_taken_for_those_of_this_one(
    open_session: Open, host_device: Any
) -> None:
    session = open_session(host_device)
    prepare(session)
    list(session.video_chunks(noises(session)))
    begin = len(host_device.calls)
    list(session.video_chunks(noises(session)))
    calls: list[Call] = host_device.calls[begin:]
    launch = next(index for index, call in enumerate(calls) if call.kind == "launch")
    cleared = {where for call in calls[:launch] for where in call.writes}
    waited = {where for call in calls for where in call.reads if call.kind == "wait_for"}
    assert len(waited) == 3
    assert waited <= cleared


def test_nan_is_told_before_the_first_frame(open_session: Open, host_device: Any) -> None:
    session = open_session(host_device)
    prepare(session)
    broken = [np.full_like(noise, np.nan) for noise in noises(session)]
    with pytest.raises(VerificationFailed, match="NaN"):
        next(session.video_chunks(broken))
    assert len(list(session.video_chunks(noises(session)))) == 3


def test_an_abandoned_video_is_waited_for(open_session: Open, host_device: Any) -> None:
    session = open_session(host_device)
    prepare(session)
    expected = session.video(noises(session, 8)).copy()
    chunks = session.video_chunks(noises(session))
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    assert not any(host_device._queues.values())
    np.testing.assert_array_equal(session.video(noises(session, 8)), expected)


def test_a_device_that_fails_in_between_is_told(open_session: Open, host_device: Any) -> None:
    session = open_session(host_device)
    prepare(session)
    host_device.faults["wait_for"] = DeviceError("cudaErrorLaunchFailure", "sticky")
    with pytest.raises(EnvironmentLacks, match="cudaErrorLaunchFailure"):
        next(session.video_chunks(noises(session)))
    with pytest.raises(EnvironmentLacks, match="context was lost"):
        next(session.video_chunks(noises(session)))


def test_a_bundle_without_a_decoder_has_no_chunks(open_session: Open) -> None:
    session = open_session()
    prepare(session)
    session.recording.chunks = []
    with pytest.raises(BadInput, match="no decoder"):
        next(session.video_chunks(noises(session)))
