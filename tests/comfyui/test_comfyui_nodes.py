"""What the nodes make of a bundle, and what they show meanwhile."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastwan.comfyui import convert, loaded
from fastwan.errors import BadInput
from fastwan.runtime.cpu.components import CpuComponents
from fastwan.runtime.pipeline import FastWanPipeline
from testkit.comfyui_graph import PROMPT, graph
from testkit.fake_comfyui import Executor, FakeComfyUI, Interrupted


@pytest.fixture(scope="module")
def right(expected: Callable[..., np.ndarray]) -> np.ndarray:
    """Frames of the prompt and seed 7, uint8 [9, 96, 160, 3]."""
    return expected(PROMPT, 7)


def levels(images: torch.Tensor) -> np.ndarray:
    """Frames as ComfyUI's own nodes make them of an IMAGE: times 255, cut."""
    return (images.numpy() * 255).astype(np.uint8)


def test_a_video_is_that_of_the_runtime(executor: Executor, right: np.ndarray) -> None:
    _, width, height, frames = executor.run(graph())["load"]
    assert (width, height, frames) == (160, 96, 9)
    images, latent, video = executor.run(graph())["play"]
    assert (images.dtype, images.shape) == (torch.float32, (9, 96, 160, 3))
    assert 0 <= images.min() < images.max() <= 1
    np.testing.assert_array_equal(levels(images), right)
    assert video.images is images
    assert video.frame_rate == 16
    assert latent["samples"].shape == (1, 16, 3, 12, 20)


def test_a_seed_and_a_sampler_make_another_video(executor: Executor) -> None:
    own, seed, sampler = (
        executor.run(graph(**given))["play"][0] for given in ({}, {"seed": 8}, {"sampler": "dmd"})
    )
    assert not torch.equal(own, seed)
    assert not torch.equal(own, sampler)


def test_latents_are_comfyuis_and_decode_to_the_video(
    executor: Executor, tiny_bundle: Path, right: np.ndarray
) -> None:
    decode = {"class_type": "FastWanDecode", "inputs": {"bundle": ["load", 0]}}
    decode["inputs"]["latent"] = ["play", 1]
    results = executor.run({**graph(), "decode": decode})
    samples = results["play"][1]["samples"]
    pipeline = FastWanPipeline.from_bundle(tiny_bundle, "cpu")
    normalised = pipeline(PROMPT, seed=7, output_type="latent").frames
    mean, std = (
        torch.tensor(each).reshape(1, 16, 1, 1, 1) for each in (convert._MEAN, convert._STD)
    )
    torch.testing.assert_close(samples, normalised * std + mean)
    assert not torch.allclose(samples, normalised, atol=0.1)
    # There and back in fp32; the last bit of a latent may move a level.
    moved = np.abs(levels(results["decode"][0]).astype(int) - right)
    assert moved.max() <= 1
    assert moved.mean() < 0.01


def test_the_statistics_are_those_of_wans_vae() -> None:
    vae = pytest.importorskip("diffusers").AutoencoderKLWan
    import inspect

    published = inspect.signature(vae.__init__).parameters
    assert tuple(published["latents_mean"].default) == convert._MEAN
    assert tuple(published["latents_std"].default) == convert._STD


@pytest.mark.parametrize(
    ("latent", "message"),
    [
        ({"samples": torch.zeros(1, 16, 3, 12, 20)}, ""),
        ({"samples": torch.zeros(1, 16, 3, 12, 24)}, "the bundle wants"),
        ({"samples": torch.zeros(2, 16, 3, 12, 20)}, "the bundle wants"),
        ({"samples": torch.zeros(1, 4, 12, 20)}, "connect latents of Wan 2.1"),
        ({}, "is no LATENT"),
    ],
)
def test_latents_of_another_model_or_shape_are_refused(
    executor: Executor, latent: Any, message: str
) -> None:
    bundle = executor.run({"load": graph()["load"]})["load"][0]
    decode = executor.nodes["FastWanDecode"]().decode
    if not message:
        assert decode(bundle, latent)[0].shape == (9, 96, 160, 3)
        return
    with pytest.raises(BadInput, match=message):
        decode(bundle, latent)


def test_embeds_of_the_bundles_encoder_or_of_comfyuis_make_the_same_video(
    executor: Executor, right: np.ndarray
) -> None:
    embed = {"class_type": "FastWanPromptEmbeds", "inputs": {"bundle": ["load", 0]}}
    first = {**embed, "inputs": {**embed["inputs"], "prompt": PROMPT}}
    second = {**embed, "inputs": {**embed["inputs"], "prompt": "", "conditioning": ["first", 0]}}
    results = executor.run(
        {**graph(prompt="", conditioning=["second", 0]), "first": first, "second": second}
    )
    ((embeds, more),) = results["first"][0]
    assert more == {}
    assert (embeds.dtype, embeds.shape) == (torch.float32, (1, 512, 64))
    np.testing.assert_array_equal(levels(results["play"][0]), right)


@pytest.mark.parametrize(
    ("conditioning", "message"),
    [
        ([[torch.zeros(1, 512, 64), {"pooled_output": None}]], ""),
        ([[torch.zeros(1, 77, 64), {}]], ""),
        ([[torch.zeros(1, 513, 64), {}]], "not \\[1, up to 512, text_dim\\]"),
        ([[torch.zeros(1, 512, 96), {}]], "have 96 channels, the model wants 64"),
        ([[torch.zeros(1, 77, 64), {}]] * 2, "a conditioning of 2 parts"),
        ([[torch.zeros(2, 77, 64), {}]], "no embeddings of one prompt"),
        ([], "a conditioning of 0 parts"),
    ],
)
def test_a_conditioning_that_is_not_one_prompts_is_refused(
    executor: Executor, conditioning: Any, message: str
) -> None:
    bundle = executor.run({"load": graph()["load"]})["load"][0]
    embed = executor.nodes["FastWanPromptEmbeds"]().embed
    if not message:
        ((embeds, _),) = embed(bundle, "", conditioning)[0]
        assert embeds.shape == (1, 512, 64)
        return
    with pytest.raises(BadInput, match=message):
        embed(bundle, "", conditioning)


def test_a_bar_by_step_and_by_frame_with_pictures(executor: Executor, comfyui: FakeComfyUI) -> None:
    executor.run(graph())
    (bar,) = comfyui.bars
    plain = [(done, total) for done, total, picture in bar if picture is None]
    assert plain == [(i, 3) for i in (1, 2, 3)] + [(i, 9) for i in range(1, 10)]
    pictures = [(total, picture.size) for _, total, picture in bar if picture is not None]
    assert pictures == [(3, (4, 4))] * 3 + [(9, (160, 96))] * 3
    assert [node for node, _ in comfyui.texts] == ["load", "play"]
    assert comfyui.texts[0][1] == "160x96x9; FastWan-QAD-1.3B\nnvfp4, sage3 attention; CPU"
    assert comfyui.texts[1][1] == "160x96x9, 16 frames a second"


def test_no_pictures_of_latents_where_the_user_wants_none(
    start: Callable[..., FakeComfyUI],
) -> None:
    from fastwan.comfyui import nodes

    comfyui = start(previews=False)
    Executor(nodes.NODE_CLASS_MAPPINGS).run(graph())
    assert [total for _, total, picture in comfyui.bars[0] if picture is not None] == [9] * 3


@pytest.mark.parametrize("steps", [1, 2])
def test_the_button_ends_a_video_between_steps(
    executor: Executor, comfyui: FakeComfyUI, right: np.ndarray, steps: int
) -> None:
    executor.run({"load": graph()["load"]})
    comfyui.stop_after = 1 + steps  # asked once per stage, text and steps, and after each step
    with pytest.raises(Interrupted):
        executor.run(graph())
    assert [done for done, total, picture in comfyui.bars[-1] if picture is None] == [
        *range(1, steps + 1)
    ]
    np.testing.assert_array_equal(levels(executor.run(graph())["play"][0]), right)


@pytest.mark.parametrize(("latents", "frames"), [(0, 0), (1, 1), (2, 5)])
def test_the_button_ends_decoding_between_latents(
    executor: Executor, comfyui: FakeComfyUI, latents: int, frames: int
) -> None:
    comfyui.stop_after = 2 + 3 + 1 + latents  # two stages, steps, and the stage of the decoder
    with pytest.raises(Interrupted):
        executor.run(graph())
    counts = [done for done, total, picture in comfyui.bars[0] if total == 9 and not picture]
    assert counts == [*range(1, frames + 1)]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("node", ["play", "decode"])
def test_pictures_are_shown_while_the_decoder_runs(
    executor: Executor,
    comfyui: FakeComfyUI,
    monkeypatch: pytest.MonkeyPatch,
    fused: bool,
    node: str,
) -> None:
    """Also where components hand out frames of their own, as a GPU's do."""
    decode = {"class_type": "FastWanDecode", "inputs": {"bundle": ["load", 0]}}
    decode["inputs"]["latent"] = ["play", 1]
    made = {**graph(), "decode": decode}
    executor.run(made)
    del executor._kept[node]
    comfyui.bars.clear()
    counts = []

    def chunks(self: CpuComponents, *args: Any) -> Iterator[np.ndarray]:
        for chunk in plain(self, *args):
            counts.append(sum(total == 9 and picture is not None for _, total, picture in shown()))
            yield chunk

    def shown() -> list[Any]:
        return [each for bar in comfyui.bars for each in bar]

    plain = CpuComponents.decode
    monkeypatch.setattr(CpuComponents, "fused", fused)
    monkeypatch.setattr(CpuComponents, "decode", chunks)
    executor.run(made)
    assert counts == [0, 1, 2]
    assert [(done, total) for done, total, picture in shown() if total == 9 and not picture] == [
        (number, 9) for number in range(1, 10)
    ]


def test_nodes_that_did_not_change_do_not_run_again(executor: Executor) -> None:
    executor.run(graph())
    executor.run(graph())
    assert executor.ran == ["load", "play"]
    executor.run(graph(seed=8))
    assert executor.ran == ["load", "play", "play"]


def test_a_bundle_that_was_built_again_is_opened_again(
    executor: Executor, models: Path, tiny_bundle: Path, right: np.ndarray
) -> None:
    folder = models / "fastwan" / "other"
    shutil.copytree(tiny_bundle, folder)
    first = executor.run(graph(bundle="other"))
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    second = executor.run(graph(bundle="other"))
    assert executor.ran == ["load", "play"] * 2
    assert first["load"][0] is not second["load"][0]
    np.testing.assert_array_equal(levels(second["play"][0]), right)


def test_memory_is_given_back_on_request_and_taken_again(
    executor: Executor, comfyui: FakeComfyUI, right: np.ndarray
) -> None:
    bundle = executor.run(graph())["load"][0]
    components = bundle.pipeline.components
    assert comfyui.loaded == [bundle._memory]
    assert "dit" in vars(components)
    comfyui.unload_all()
    assert not {"dit", "decoder", "text_encoder"} & set(vars(components))
    images = executor.run(graph(seed=8))["play"][0]
    assert images.shape == (9, 96, 160, 3)
    again = executor.run(graph())["play"][0]
    np.testing.assert_array_equal(levels(again), right)
    assert comfyui.loaded == [bundle._memory]


def test_a_bundle_is_opened_once_for_all_nodes_and_closed_with_the_last(
    executor: Executor, comfyui: FakeComfyUI
) -> None:
    one = graph()
    results = executor.run({**one, "again": one["load"]})
    bundle, pipeline = results["load"][0], results["load"][0].pipeline
    assert results["again"][0] is bundle
    comfyui.loaded.clear()  # it holds no references
    executor.run({})
    del bundle, results
    gc.collect()
    assert not loaded._open
    with pytest.raises(BadInput, match="the pipeline is closed"):
        pipeline.embed("a")


def test_two_bundles_play_in_one_graph(
    executor: Executor, models: Path, tiny_bundle: Path, right: np.ndarray
) -> None:
    (models / "fastwan" / "second").symlink_to(tiny_bundle)
    second = {f"{name}_2": node for name, node in graph(bundle="second").items()}
    second["play_2"]["inputs"]["bundle"] = ["load_2", 0]
    results = executor.run({**graph(), **second})
    assert results["load"][0] is not results["load_2"][0]
    for name in ("play", "play_2"):
        np.testing.assert_array_equal(levels(results[name][0]), right)
