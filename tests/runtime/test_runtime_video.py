"""Video files: format by suffix, frames in order, the same bytes, whole or not at all."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastwan.errors import BadInput, EnvironmentLacks
from fastwan.ownership import RECORD
from fastwan.runtime.seal import SEAL_BYTES, is_sealed
from fastwan.runtime.video import Output, check_outputs, open_output, parse_output

H, W = 32, 48


def gradient(count: int) -> list[np.ndarray]:
    """Smooth frames whose mean brightness rises with their number."""
    ramp = np.linspace(0, 60, W)[None, :, None] + np.zeros((H, W, 3))
    return [(ramp + 20 * i).astype(np.uint8) for i in range(count)]


def write(path: Path, frames: list[np.ndarray]) -> Output:
    output = parse_output(path)
    with open_output(output, height=H, width=W) as put:
        for frame in frames:
            put(frame)
    return output


def test_mp4_has_every_frame_in_order_at_16_frames_a_second(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed")
    frames = gradient(9)
    write(tmp_path / "out.mp4", frames)
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.average_rate) == (W, H, 16)
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(decoded) == len(frames)
    for got, wanted in zip(decoded, frames, strict=True):
        assert np.abs(got.astype(int) - wanted.astype(int)).mean() < 4


def test_same_frames_give_the_same_mp4_bytes(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    for name, count in (("a", 9), ("b", 9), ("c", 8)):
        write(tmp_path / f"{name}.mp4", gradient(count))
    a, b, c = ((tmp_path / f"{name}.mp4").read_bytes() for name in "abc")
    assert a == b
    assert a != c
    assert b"Lavf" not in a


def test_frames_with_texture_give_one_mp4_however_often_they_are_encoded(tmp_path: Path) -> None:
    """Small or smooth frames do so whatever the encoder's options."""
    pytest.importorskip("av", reason="PyAV is not installed")
    random, height, width = np.random.default_rng(0), 96, 160
    coarse = random.integers(0, 255, (12, 20, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    grain = random.integers(0, 9, (9, height, width, 3), np.uint8)
    made = set()
    for index in range(60):
        output = parse_output(tmp_path / f"{index}.mp4")
        with open_output(output, height=height, width=width) as put:
            for step, noise in enumerate(grain):
                put(np.roll(coarse, 3 * step, 1) + noise)
        made.add(output.path.read_bytes())
    assert len(made) == 1


@pytest.mark.parametrize("name", ["frames", "frames/shot_%03d.png"])
def test_images_hold_the_exact_pixels(tmp_path: Path, name: str) -> None:
    frames = gradient(3)
    output = write(tmp_path / name, frames)
    assert output.path == tmp_path / "frames"
    for index, frame in enumerate(frames):
        np.testing.assert_array_equal(np.asarray(Image.open(output.frame(index))), frame)
    images = sorted(path.name for path in output.path.glob("*.png"))
    assert images == [output.frame(index).name for index in range(3)]


def test_a_folder_of_frames_is_replaced_and_another_folder_is_not(tmp_path: Path) -> None:
    write(tmp_path / "frames", gradient(3))
    write(tmp_path / "frames", gradient(2))
    assert len(list((tmp_path / "frames").glob("*.png"))) == 2
    (tmp_path / "frames" / RECORD).unlink()
    with pytest.raises(BadInput, match="was not written there"):
        write(tmp_path / "frames", gradient(1))
    assert len(list((tmp_path / "frames").glob("*.png"))) == 2


@pytest.mark.parametrize("name", ["out.mp4", "frames"])
def test_a_failure_leaves_what_was_there(tmp_path: Path, name: str) -> None:
    if name == "out.mp4":
        pytest.importorskip("av", reason="PyAV is not installed")
    output = write(tmp_path / name, gradient(2))

    def listing() -> dict[Path, bytes]:
        return {p: p.read_bytes() for p in sorted(tmp_path.rglob("*")) if p.is_file()}

    before = listing()

    def cancelled() -> None:
        with open_output(output, height=H, width=W) as put:
            put(gradient(1)[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cancelled()
    assert listing() == before


@pytest.mark.parametrize("name", ["out.gif", "out.png", "out_%04d_%04d.png", "out_%s.png"])
def test_other_formats_are_refused(tmp_path: Path, name: str) -> None:
    assert parse_output(tmp_path / "out_%04d.png").kind == "frames"
    with pytest.raises(BadInput, match=r"frame_%04d\.png"):
        parse_output(tmp_path / name)


def test_a_folder_named_like_a_video_is_refused(tmp_path: Path) -> None:
    check_outputs([parse_output(tmp_path / "out.mp4")])
    (tmp_path / "out.mp4").mkdir()
    with pytest.raises(BadInput, match="output is a folder"):
        check_outputs([parse_output(tmp_path / "out.mp4")])


@pytest.fixture
def video(tmp_path: Path) -> Path:
    pytest.importorskip("av", reason="PyAV is not installed")
    write(tmp_path / "out.mp4", gradient(2))
    return tmp_path / "out.mp4"


def test_a_video_of_this_tool_is_replaced(video: Path) -> None:
    before = video.read_bytes()
    write(video, gradient(3))
    assert video.read_bytes() != before
    assert is_sealed(video)


def _unsealed(content: bytes) -> bytes:
    return content[:-SEAL_BYTES]


def _appended(content: bytes) -> bytes:
    return content + b"\0"


def _edited(content: bytes) -> bytes:
    return content[:100] + bytes([content[100] ^ 1]) + content[101:]


def _another(content: bytes) -> bytes:
    return b"holiday"


@pytest.mark.parametrize("change", [_unsealed, _appended, _edited, _another])
def test_a_video_that_is_not_proven_is_refused_and_kept(
    video: Path, change: Callable[[bytes], bytes]
) -> None:
    video.write_bytes(change(video.read_bytes()))
    before = video.read_bytes()
    with pytest.raises(BadInput, match="--force"):
        check_outputs([Output("mp4", video)])
    with pytest.raises(BadInput, match="--force"):
        write(video, gradient(3))
    assert video.read_bytes() == before
    check_outputs([Output("mp4", video)], force=True)


@pytest.mark.parametrize(
    ("left", "right", "good"),
    [
        ("frames/x.mp4", "frames", "x.mp4"),
        ("frames", "frames/inner", "inner"),
        ("frames", "frames/../frames", "other"),
    ],
)
def test_an_output_inside_another_is_refused(
    tmp_path: Path, left: str, right: str, good: str
) -> None:
    pair = [parse_output(tmp_path / left), Output("frames", tmp_path / right)]
    with pytest.raises(BadInput, match="lies in another one"):
        check_outputs(pair)
    check_outputs([parse_output(tmp_path / good), pair[0 if good == "other" else 1]])


def test_frames_never_replace_what_is_read(tmp_path: Path) -> None:
    write(tmp_path / "bundle", gradient(1))
    output = parse_output(tmp_path / "bundle")
    with pytest.raises(BadInput, match="input"):
        check_outputs([output], force=True, inputs=[tmp_path / "bundle"])
    check_outputs([output])


def test_missing_pyav_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(EnvironmentLacks, match=r"pip install .*, or name a folder"):
        write(tmp_path / "out.mp4", gradient(1))
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / "frames", gradient(1))
