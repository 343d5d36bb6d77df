"""The nodes in a real ComfyUI, over its own interface; skipped where there is none."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

import fastwan.comfyui
from testkit.comfyui_server import Server, message

WORKFLOWS = Path(fastwan.comfyui.__file__).parent / "custom_node" / "example_workflows"
PROMPT = "A red fox in the snow"


def graph(seed: int = 7, prompt: str = PROMPT, **images: Sequence[Any]) -> dict[str, Any]:
    """Load, play, and save IMAGEs as PNG; `images` are links by node name."""
    video = {"bundle": ["load", 0], "prompt": prompt, "seed": seed, "sampler": "bundle's own"}
    saves = {
        name: {"class_type": "SaveImage", "inputs": {"images": link, "filename_prefix": name}}
        for name, link in (images or {"save": ["play", 0]}).items()
    }
    return {
        "load": {
            "class_type": "FastWanLoadBundle",
            "inputs": {"bundle": "fastwan-qad", "device": "cpu"},
        },
        "play": {"class_type": "FastWanTextToVideo", "inputs": video},
        **saves,
    }


def pixels(files: Sequence[bytes]) -> np.ndarray:
    """Frames of PNG files, uint8 [F, H, W, 3]."""
    return np.stack([np.asarray(Image.open(io.BytesIO(each)).convert("RGB")) for each in files])


@pytest.mark.parametrize("seed", [7, 8])
def test_a_video_has_the_pixels_of_generate(
    server: Server, expected: Callable[..., np.ndarray], seed: int
) -> None:
    parts = {"class_type": "GetVideoComponents", "inputs": {"video": ["play", 2]}}
    history = server.play({**graph(seed, images=["play", 0], video=["parts", 0]), "parts": parts})
    for node in ("images", "video"):
        np.testing.assert_array_equal(
            pixels(server.files(history, node)), expected(PROMPT, seed), err_msg=node
        )


@pytest.mark.parametrize("path", sorted(WORKFLOWS.glob("api/*.json")), ids=lambda path: path.stem)
def test_a_shipped_workflow_plays(
    server: Server, expected: Callable[..., np.ndarray], path: Path
) -> None:
    prompt = json.loads(path.read_text())
    (save,) = [name for name, node in prompt.items() if node["class_type"] == "SaveVideo"]
    texts = [value for node in prompt.values() for value in node["inputs"].values()]
    (words,) = {each for each in texts if isinstance(each, str) and " walks " in each}
    history = server.play(prompt)
    (content,) = server.files(history, save)
    with av.open(io.BytesIO(content)) as container:
        assert container.streams.video[0].average_rate == 16
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    made = np.stack(frames).astype(float)
    right = expected(words, 1024).astype(float)
    halves = [made] if made.shape == right.shape else np.split(made, 2, axis=2)
    for half in halves:
        # The same video in H.264; one of another seed is off by 40 levels.
        assert np.abs(half - right).mean() < 12
        assert np.abs(half - expected(words, 1025)).mean() > 24


def test_what_did_not_change_is_not_made_again(server: Server) -> None:
    server.play(graph(21))
    again = server.play(graph(21))
    assert {"load", "play", "save"} <= set(message(again, "execution_cached")["nodes"])
    other = server.play(graph(22))
    assert message(other, "execution_cached")["nodes"] == ["load"]


def test_a_bundle_that_was_built_again_is_loaded_again(server: Server, tiny_bundle: Path) -> None:
    folder = server.base / "models" / "fastwan" / "mine"
    shutil.copytree(tiny_bundle, folder)
    manifest = (tiny_bundle / "manifest.json").read_text()
    prompt = graph(23)
    prompt["load"]["inputs"]["bundle"] = "mine 160x96x9"
    cached = []
    for end in ("", "", "\n"):
        (folder / "manifest.json").write_text(manifest + end)
        cached.append("load" in message(server.play(prompt), "execution_cached")["nodes"])
    assert cached == [False, True, False]


def test_two_queued_prompts_are_played_one_after_the_other(
    server: Server, expected: Callable[..., np.ndarray]
) -> None:
    seeds = (31, 32)
    queued = [server.queue(graph(seed)) for seed in seeds]
    for seed, prompt in zip(seeds, queued, strict=True):
        made = pixels(server.files(server.wait(prompt), "save"))
        np.testing.assert_array_equal(made, expected(PROMPT, seed))


def test_steps_frames_pictures_and_words_are_told(server: Server) -> None:
    with server.listening("watcher") as told:
        server.queue(graph(41), "watcher")
        seen = []
        for each in told:
            seen.append(each)
            if each["type"] == "execution_success":
                break
    steps = [each["data"] for each in seen if each["type"] == "progress"]
    bars = [(each["value"], each["max"]) for each in steps if each["node"] == "play"]
    assert (1, 3) in bars
    assert (3, 3) in bars
    assert (9, 9) in bars
    kinds = [each["data"] for each in seen if each["type"] == "binary"]
    assert kinds.count(1) >= 3  # a picture
    assert 3 in kinds  # a line of text


def test_the_button_ends_a_prompt_and_the_next_one_plays(
    server: Server, expected: Callable[..., np.ndarray]
) -> None:
    many = graph(51)
    for number in range(30):
        node = json.loads(json.dumps(many["play"]))
        node["inputs"]["seed"] = 1000 + number
        many[f"play_{number}"] = node
        save = {"images": [f"play_{number}", 0], "filename_prefix": "x"}
        many[f"save_{number}"] = {"class_type": "SaveImage", "inputs": save}
    with server.listening("hasty") as told:
        prompt = server.queue(many, "hasty")
        for each in told:
            if each["type"] == "progress":
                server.post("interrupt", {})
                break
    history = server.wait(prompt)
    ended = message(history, "execution_interrupted")
    assert ended["node_type"] == "FastWanTextToVideo"
    assert len(history["outputs"]) < 30
    made = pixels(server.files(server.play(graph(52)), "save"))
    np.testing.assert_array_equal(made, expected(PROMPT, 52))


def test_an_error_is_one_line_on_its_node_and_the_next_prompt_plays(server: Server) -> None:
    failed = graph(61)
    failed["play"]["inputs"]["sampler"] = "unipc-50"
    told = message(server.wait(server.queue(failed)), "execution_error")
    assert told["node_id"] == "play"
    assert told["exception_type"] == "fastwan.errors.BadInput"
    assert "unipc-50" in told["exception_message"]
    assert len(told["exception_message"].strip().splitlines()) == 1
    server.play(graph(61))


def test_a_shape_that_a_bundle_does_not_make_is_refused_in_words(server: Server) -> None:
    prompt = graph(62)
    prompt["load"]["inputs"]["bundle"] = "fastwan-qad 832x480x81"
    told = message(server.wait(server.queue(prompt)), "execution_error")
    assert told["node_id"] == "load"
    assert told["exception_message"].strip() == "unknown shape '832x480x81': one of 160x96x9"


def test_memory_is_given_back_when_it_is_asked_for(
    server: Server, expected: Callable[..., np.ndarray]
) -> None:
    def loads() -> int:
        return server.log.count("Requested to load FastWanBundle")

    server.play(graph(71))
    before = loads()
    server.play(graph(72))
    assert loads() == before
    server.free(results=False)
    made = pixels(server.files(server.play(graph(73)), "save"))
    np.testing.assert_array_equal(made, expected(PROMPT, 73))
    assert loads() == before + 1
    server.free(results=True)
    again = server.play(graph(73))
    assert message(again, "execution_cached")["nodes"] == []
    assert loads() == before + 2
