"""The pipeline over a device: called like the one on the CPU, with the same results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastwan.bundle import open_bundle
from fastwan.errors import BadInput
from fastwan.quality.races import find_races
from fastwan.runtime.device.choice import DeviceChoice
from fastwan.runtime.device.components import DeviceComponents
from fastwan.runtime.generate import generate
from fastwan.runtime.pipeline import FastWanPipeline


@pytest.fixture
def on_device(bundle: Any, host_device: Any, host_platform: Any) -> FastWanPipeline:
    opened = open_bundle(bundle.root)
    components = DeviceComponents(opened, host_platform(host_device))
    return FastWanPipeline(opened, DeviceChoice("cuda"), components)


@pytest.fixture
def on_cpu(bundle: Any) -> FastWanPipeline:
    return FastWanPipeline.from_bundle(bundle.root, "cpu")


def launches(device: Any) -> int:
    return sum(call.kind == "launch" for call in device.calls)


@pytest.mark.parametrize("sampler", [None, "dmd"])
@pytest.mark.parametrize("output_type", ["np", "pt", "pil", "uint8", "latent"])
def test_every_output_is_the_cpus(
    on_device: FastWanPipeline, on_cpu: FastWanPipeline, output_type: Any, sampler: str | None
) -> None:
    def result(pipe: FastWanPipeline) -> Any:
        made = pipe("red fox", seed=3, output_type=output_type, sampler=sampler).frames
        return [np.asarray(image) for image in made[0]] if output_type == "pil" else made

    np.testing.assert_array_equal(result(on_device), result(on_cpu))


def test_a_video_is_one_launch_and_a_callback_divides_it(
    on_device: FastWanPipeline, on_cpu: FastWanPipeline, host_device: Any
) -> None:
    frames = on_device("a").frames
    assert launches(host_device) == 1
    seen: list[int] = []

    def callback(_pipe: Any, index: int, _t: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        seen.append(index)
        return {"latents": kwargs["latents"] * 0.5} if index == 1 else {}

    divided = on_device("a", callback_on_step_end=callback).frames
    assert seen == [0, 1, 2]
    assert launches(host_device) == 1 + 3 + 1
    np.testing.assert_array_equal(divided, on_cpu("a", callback_on_step_end=callback).frames)
    np.testing.assert_array_equal(on_device("a").frames, frames)
    assert find_races(host_device.calls) == []


def test_the_same_prompt_again_is_neither_encoded_nor_projected(
    on_device: FastWanPipeline, host_device: Any
) -> None:
    def engines(*arguments: Any, **options: Any) -> list[str]:
        before = len(host_device.calls)
        on_device(*arguments, **options)
        return [c.name for c in host_device.calls[before:] if c.kind == "engine"]

    on_device.load()
    assert engines("a") == ["text_encoder", "text_kv"]
    assert engines("a", seed=5) == []
    assert engines("red fox") == ["text_encoder", "text_kv"]
    # Its embeddings are known, its keys and values were replaced.
    assert engines("a") == ["text_kv"]


def test_a_sampler_that_is_not_used_takes_no_memory(
    on_device: FastWanPipeline, on_cpu: FastWanPipeline, host_device: Any
) -> None:
    def arenas() -> int:
        return [c.name for c in host_device.calls if c.kind == "allocate"].count("device")

    # Arena, scratch and what stays: text, steps and decoder share them.
    on_device("a", sampler="dmd")
    assert arenas() == 3
    made = on_device("a").frames
    assert arenas() == 6
    np.testing.assert_array_equal(made, on_cpu("a").frames)


def test_an_exception_in_the_callback_leaves_the_pipeline_usable(
    on_device: FastWanPipeline,
) -> None:
    def cancel(*_: Any) -> None:
        raise KeyboardInterrupt

    before = on_device("a").frames
    with pytest.raises(KeyboardInterrupt):
        on_device("a", callback_on_step_end=cancel)
    np.testing.assert_array_equal(on_device("a").frames, before)


def test_latents_and_embeddings_may_be_given(
    on_device: FastWanPipeline, on_cpu: FastWanPipeline
) -> None:
    latents = torch.randn(1, 16, 3, 2, 4, generator=torch.Generator().manual_seed(4))
    embeds = torch.randn(1, 2, 8, generator=torch.Generator().manual_seed(5))
    made = [p(prompt_embeds=embeds, latents=latents).frames for p in (on_device, on_cpu)]
    np.testing.assert_array_equal(*made)
    with pytest.raises(BadInput, match="width 16"):
        on_device("a", width=16)


def test_generate_writes_each_video_beside_the_next(
    bundle: Any, on_device: FastWanPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ["a", "red fox"]
    alone = [generate(bundle.root, p, tmp_path / f"cpu_{p}", device="cpu") for p in prompts]
    monkeypatch.setattr(FastWanPipeline, "from_bundle", lambda *_, **__: on_device)
    monkeypatch.setattr(on_device, "close", lambda: None)
    together = generate(bundle.root, prompts, tmp_path / "out", repeat=2)
    assert together.device == "cuda"
    for made, once in zip(together.videos, alone, strict=True):
        (expected,) = once.videos
        assert made.frames_sha256 == expected.frames_sha256
        assert "write" in made.runs[1]
        assert "write" not in made.runs[0]
        images = list(Path(str(expected.frames_dir)).glob("*.png"))
        assert images
        for image in images:
            assert (Path(str(made.frames_dir)) / image.name).read_bytes() == image.read_bytes()


def test_a_write_that_fails_beside_the_next_video_is_reported(
    bundle: Any, on_device: FastWanPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FastWanPipeline, "from_bundle", lambda *_, **__: on_device)
    monkeypatch.setattr(on_device, "close", lambda: None)
    monkeypatch.setattr("PIL.Image.Image.save", full)
    with pytest.raises(BadInput, match="No space left"):
        generate(bundle.root, ["a", "red fox"], tmp_path / "out")
    assert list(tmp_path.glob("out*")) == []
    monkeypatch.undo()
    assert on_device("a").frames.shape == (1, 9, 16, 32, 3)
