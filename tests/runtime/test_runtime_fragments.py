"""A fragmented mp4: bytes while frames come, the plain mp4's pictures, playable from any cut."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest

from fastwan.runtime.fragments import FragmentedMp4
from fastwan.runtime.video import open_output, parse_output

pytest.importorskip("av", reason="PyAV is not installed")

H, W, COUNT = 64, 96, 50
"""Beyond the frames that an encoder looks ahead by."""


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    """A coarse pattern that moves, with grain."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 240, (8, 12, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    grain = random.integers(0, 9, (COUNT, H, W, 3), np.uint8)
    return [np.roll(coarse, 2 * index, 1) + noise for index, noise in enumerate(grain)]


def encode(frames: list[np.ndarray], *, at_once: bool = True) -> list[bytes]:
    """Bytes that are new with each frame, and with the end."""
    with FragmentedMp4(H, W, at_once=at_once) as video:
        return [*(video.write(frame) for frame in frames), video.finish()]


def decode(data: bytes) -> list[np.ndarray]:
    import av

    with av.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def boxes(data: bytes) -> list[str]:
    """Names of the boxes of the file, in order."""
    found, at = [], 0
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        found.append(data[at + 4 : at + 8].decode())
        assert size >= 8
        at += size
    assert at == len(data)
    return found


def test_every_frame_is_a_fragment_behind_a_head_that_names_none(
    frames: list[np.ndarray],
) -> None:
    data = b"".join(encode(frames))
    found = boxes(data)
    assert found[:2] == ["ftyp", "moov"]
    assert found[2:] == ["moof", "mdat"] * COUNT + ["mfra"]
    import av

    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.average_rate) == (W, H, 16)
        packets = [packet for packet in container.demux(stream) if packet.size]
    # Shown in the order in which they come, from 0 on.
    assert [packet.pts for packet in packets] == [packet.dts for packet in packets]
    assert packets[0].pts == 0


def test_a_frame_leaves_with_the_one_behind_it(frames: list[np.ndarray]) -> None:
    parts = encode(frames)
    sent = 0
    for index in range(1, COUNT):
        sent += len(parts[index])
        assert boxes(parts[index])[-2:] == ["moof", "mdat"]
    head = parts[0] + parts[1]
    assert len(decode(head)) == 1
    assert sent > 0.9 * sum(map(len, parts))


def test_with_the_plain_files_settings_the_pictures_are_its_own(
    frames: list[np.ndarray], tmp_path: Path
) -> None:
    output = parse_output(tmp_path / "plain.mp4")
    with open_output(output, height=H, width=W) as put:
        for frame in frames:
            put(frame)
    plain = decode(output.path.read_bytes())
    late = decode(b"".join(encode(frames, at_once=False)))
    assert len(plain) == COUNT
    np.testing.assert_array_equal(late, plain)


def test_without_a_look_ahead_they_are_near_the_frames_that_were_given(
    frames: list[np.ndarray],
) -> None:
    smooth = [np.full((H, W, 3), 4 * index, np.uint8) for index in range(COUNT)]
    for given in (frames, smooth):
        made = decode(b"".join(encode(given)))
        assert len(made) == COUNT
        # Chroma has half the resolution; of grey frames nothing is lost but rounding.
        error = np.abs(np.array(made, float) - np.array(given, float)).mean()
        assert error < (2 if given is smooth else 12)


def test_what_was_sent_until_a_cut_can_be_played(frames: list[np.ndarray]) -> None:
    parts = encode(frames)
    whole = decode(b"".join(parts))
    for cut in (2, 7, 20):
        np.testing.assert_array_equal(decode(b"".join(parts[:cut])), whole[: cut - 1])


def test_the_same_frames_give_the_same_bytes(frames: list[np.ndarray]) -> None:
    once = b"".join(encode(frames))
    assert once == b"".join(encode(frames))
    assert once != b"".join(encode(frames[:-1]))
    assert b"Lavf" not in once


def test_it_can_be_given_up_in_the_middle(frames: list[np.ndarray]) -> None:
    with FragmentedMp4(H, W) as video:
        video.write(frames[0])
    with FragmentedMp4(H, W):
        pass
