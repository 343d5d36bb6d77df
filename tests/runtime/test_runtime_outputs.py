"""What a call returns: diffusers' layouts and floats, uint8 under its own name, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastwan.errors import BadInput
from fastwan.runtime.generate import generate
from fastwan.runtime.outputs import Collector, PipelineOutput
from fastwan.runtime.pipeline import FastWanPipeline
from fastwan.runtime.timings import Timings


@pytest.fixture
def pipe(bundle: Any) -> FastWanPipeline:
    return FastWanPipeline.from_bundle(bundle.root, "cpu")


def as_export_to_video_does(frames: Any) -> np.ndarray:
    """The pixels that diffusers' `export_to_video` writes for frames of an array."""
    return np.stack([(frame * 255).astype(np.uint8) for frame in frames])


def test_output_types_hold_the_same_video(pipe: FastWanPipeline) -> None:
    pixels = pipe("a", output_type="uint8").frames
    assert (pixels.shape, pixels.dtype) == ((1, 9, 16, 32, 3), np.uint8)
    assert pixels.std() > 1
    floats = pipe("a").frames
    assert (floats.shape, floats.dtype) == (pixels.shape, np.float32)
    np.testing.assert_array_equal(floats, pixels / np.float32(255))
    tensor = pipe("a", output_type="pt").frames
    assert (tensor.shape, tensor.dtype) == ((1, 9, 3, 16, 32), torch.float32)
    np.testing.assert_array_equal(tensor.permute(0, 1, 3, 4, 2).numpy(), floats)
    (images,) = pipe("a", output_type="pil").frames
    np.testing.assert_array_equal([np.asarray(image) for image in images], pixels[0])
    latents = pipe("a", output_type="latent").frames
    assert (latents.shape, latents.dtype) == ((1, 16, 3, 2, 4), torch.float32)


def test_diffusers_writes_the_pixels_that_were_made(pipe: FastWanPipeline) -> None:
    pixels = pipe("a", output_type="uint8").frames[0]
    np.testing.assert_array_equal(as_export_to_video_does(pipe("a").frames[0]), pixels)


@pytest.mark.parametrize("output_type", ["np", "pt"])
def test_every_level_comes_back_cut_and_rounded(output_type: Any) -> None:
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    collected = Collector(1, output_type)
    collected.add(levels.shape, iter(levels))
    floats = np.asarray(collected.result()[0])
    floats = floats.transpose(0, 2, 3, 1) if output_type == "pt" else floats
    assert (floats.min(), floats.max()) == (0, 1)
    np.testing.assert_array_equal((floats * 255).astype(np.uint8), levels)
    np.testing.assert_array_equal(np.rint(floats * 255).astype(np.uint8), levels)


def test_the_frames_are_found_as_in_diffusers(pipe: FastWanPipeline) -> None:
    output = pipe("a", seed=5)
    assert isinstance(output, PipelineOutput)
    assert output[0] is output.frames
    assert output["frames"] is output.frames
    assert output[:1] == output.to_tuple()
    (frames,) = output
    assert frames is output.frames
    assert list(output.keys()) == ["frames"]
    assert len(output) == 1
    assert output.seed == 5
    with pytest.raises(IndexError):
        output[1]
    with pytest.raises(KeyError):
        output["images"]


def test_return_dict_false_is_a_tuple(pipe: FastWanPipeline) -> None:
    returned = pipe("a", return_dict=False)
    assert isinstance(returned, tuple)
    (frames,) = returned
    np.testing.assert_array_equal(frames, pipe("a", return_dict=True).frames)


@pytest.mark.parametrize("output_type", ["np", "pil", "latent"])
def test_an_output_is_shown_in_one_line(pipe: FastWanPipeline, output_type: Any) -> None:
    shown = repr(pipe("a", seed=5, output_type=output_type))
    assert "\n" not in shown
    assert output_type in shown
    assert "[1, 9" in shown or output_type == "latent"
    assert "seeds [5]" in shown


@pytest.mark.parametrize("output_type", ["np", "pt", "pil", "uint8"])
def test_save_writes_what_generate_writes(
    bundle: Any, pipe: FastWanPipeline, tmp_path: Path, output_type: Any
) -> None:
    generate(bundle.root, "a fox", tmp_path / "expected", seed=3, device="cpu")
    output = pipe("a fox", seed=3, output_type=output_type)
    assert output.save(tmp_path / "saved") == (tmp_path / "saved",)
    images = sorted(path.name for path in (tmp_path / "expected").glob("*.png"))
    assert len(images) == 9
    for name in images:
        made = (tmp_path / "saved" / name).read_bytes()
        assert made == (tmp_path / "expected" / name).read_bytes()


def test_save_writes_an_mp4_and_replaces_only_its_own(
    pipe: FastWanPipeline, tmp_path: Path
) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed")
    output = pipe("a fox", seed=3)
    for _ in range(2):
        output.save(tmp_path / "saved.mp4")
    with av.open(str(tmp_path / "saved.mp4")) as video:
        written = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(written) == 9
    assert np.corrcoef(np.ravel(written), output.frames.ravel())[0, 1] > 0.5
    (tmp_path / "mine.mp4").write_bytes(b"mine")
    with pytest.raises(BadInput, match=r"mine\.mp4"):
        output.save(tmp_path / "mine.mp4")
    assert (tmp_path / "mine.mp4").read_bytes() == b"mine"
    output.save(str(tmp_path / "mine.mp4"), force=True)
    assert (tmp_path / "mine.mp4").stat().st_size > 100


def test_several_videos_number_their_files(pipe: FastWanPipeline, tmp_path: Path) -> None:
    places = pipe(["a", "red fox"]).save(tmp_path / "out")
    assert [place.name for place in places] == ["out_0", "out_1"]
    first, second = (sorted(place.glob("*.png")) for place in places)
    assert len(first) == len(second) == 9
    assert first[0].read_bytes() != second[0].read_bytes()


def test_what_is_no_video_is_not_saved(pipe: FastWanPipeline, tmp_path: Path) -> None:
    pipe("a").save(tmp_path / "good")
    with pytest.raises(BadInput, match="latents are no frames"):
        pipe("a", output_type="latent").save(tmp_path / "latents")
    broken = pipe("a")
    broken.frames[0, 3, 0, 0, 0] = np.nan
    with pytest.raises(BadInput, match="frames hold NaN"):
        broken.save(tmp_path / "broken")
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "good"}


def test_times_of_several_videos_are_added() -> None:
    timings = Timings(decode=1.0)
    timings.add({"decode": 2.0, "text": 0.5})
    assert timings == {"decode": 3.0, "text": 0.5}
