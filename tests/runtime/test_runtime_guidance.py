"""Classifier-free guidance of a call, on the CPU and on a device."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastwan.config import SAMPLERS
from fastwan.errors import BadInput
from fastwan.runtime.device.components import DeviceComponents
from fastwan.runtime.generate import generate
from fastwan.runtime.pipeline import FastWanPipeline
from testkit.host_device import HostDevice, make_host_platform

GUIDED = replace(SAMPLERS["unipc-50"], steps=4)


@pytest.fixture
def root(make_bundle: Callable[..., Any]) -> Path:
    made: Path = make_bundle(sampler=GUIDED.name, samplers=(GUIDED,)).root
    return made


@pytest.fixture(params=["cpu", "device"])
def pipe(request: pytest.FixtureRequest, root: Path) -> FastWanPipeline:
    on_cpu = FastWanPipeline.from_bundle(root, "cpu")
    if request.param == "cpu":
        return on_cpu
    components = DeviceComponents(on_cpu.bundle, make_host_platform(HostDevice()))
    return FastWanPipeline(on_cpu.bundle, on_cpu.choice, components)


def latents(pipe: FastWanPipeline, **arguments: Any) -> torch.Tensor:
    frames = pipe(**{"prompt": "red fox", "output_type": "latent", **arguments}).frames
    assert isinstance(frames, torch.Tensor)
    return frames


def test_a_guided_video_is_led_away_from_the_negative_prompt(pipe: FastWanPipeline) -> None:
    plain = latents(pipe)
    assert torch.equal(latents(pipe, negative_prompt=""), plain)
    assert torch.equal(latents(pipe, guidance_scale=5), plain)
    assert not torch.equal(latents(pipe, negative_prompt="a"), plain)
    assert not torch.equal(latents(pipe, guidance_scale=4.0), plain)
    # The prompt away from itself is the prompt, but for the rounding of one sum.
    alone = latents(pipe, guidance_scale=1)
    torch.testing.assert_close(latents(pipe, negative_prompt="red fox"), alone, rtol=0, atol=1e-4)
    assert torch.equal(latents(pipe, guidance_scale=0.5), alone)


def test_negative_embeddings_stand_for_a_negative_prompt(pipe: FastWanPipeline) -> None:
    expected = latents(pipe, negative_prompt="a")
    embeds = torch.from_numpy(pipe.embed("a").astype(np.float32))
    assert torch.equal(latents(pipe, negative_prompt_embeds=embeds), expected)
    both = latents(pipe, prompt=["red fox", "fox"], negative_prompt=["a", "runs"])
    one = latents(pipe, prompt="fox", negative_prompt="runs")
    assert torch.equal(both[:1], expected)
    assert torch.equal(both[1:], one)


def test_devices_play_guided_videos_alike(root: Path) -> None:
    on_cpu = FastWanPipeline.from_bundle(root, "cpu")
    components = DeviceComponents(on_cpu.bundle, make_host_platform(HostDevice()))
    on_device = FastWanPipeline(on_cpu.bundle, on_cpu.choice, components)
    for arguments in ({"negative_prompt": "a"}, {"guidance_scale": 2.5}, {"guidance_scale": 1}):
        made = [p("fox", **arguments, output_type="uint8").frames for p in (on_cpu, on_device)]
        np.testing.assert_array_equal(*made)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance_scale": 100}, "no number below 100"),
        ({"guidance_scale": "much"}, "guidance_scale is 'much'"),
        ({"negative_prompt": 7}, r"negative_prompt is 7 \(int\), not one string"),
        ({"negative_prompt": " "}, "negative_prompt is blank"),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt are 2 for 1 prompts"),
        ({"negative_prompt": "a", "guidance_scale": 1}, "negative_prompt would have no effect"),
        (
            {"negative_prompt": "a", "negative_prompt_embeds": torch.zeros(1, 6, 8)},
            "either negative_prompt or negative_prompt_embeds",
        ),
        ({"negative_prompt_embeds": torch.zeros(1, 6, 9)}, "9 channels"),
    ],
)
def test_guidance_that_cannot_be_is_refused(
    root: Path, arguments: dict[str, Any], message: str
) -> None:
    pipe = FastWanPipeline.from_bundle(root, "cpu")
    latents(pipe, negative_prompt="a", guidance_scale=3)
    with pytest.raises(BadInput, match=message):
        latents(pipe, **arguments)


def test_a_callback_sees_both_prompts_and_the_scale(pipe: FastWanPipeline) -> None:
    seen: list[tuple[float, bool, dict[str, Any]]] = []
    negative = torch.from_numpy(pipe.embed("a").astype(np.float32))

    def callback(owner: Any, _step: int, _timestep: int, given: dict[str, Any]) -> dict[str, Any]:
        seen.append((owner.guidance_scale, owner.do_classifier_free_guidance, dict(given)))
        return given

    names = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    latents(
        pipe, negative_prompt="a", guidance_scale=3, callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=names,
    )  # fmt: skip
    assert len(seen) == 4
    scale, guided, given = seen[0]
    assert (scale, guided) == (3.0, True)
    assert torch.equal(given["negative_prompt_embeds"].float(), negative)

    def other(*_: Any) -> dict[str, Any]:
        return {"negative_prompt_embeds": torch.ones(1, 6, 8)}

    with pytest.raises(BadInput, match="negative_prompt_embeds cannot change"):
        latents(pipe, callback_on_step_end=other)
    assert pipe.guidance_scale == GUIDED.guidance


def test_generate_tells_the_scale_and_the_negative_prompt(root: Path, tmp_path: Path) -> None:
    report = generate(
        root, "red fox", tmp_path / "frames", negative_prompt="a", guidance_scale=3, device="cpu"
    )
    (made,) = json.loads(report.model_dump_json())["videos"]
    assert (made["negative_prompt"], made["guidance_scale"]) == ("a", 3.0)
    plain = generate(root, "red fox", tmp_path / "plain", device="cpu").videos[0]
    assert (plain.negative_prompt, plain.guidance_scale) == ("", 5.0)
    assert plain.frames_sha256 != made["frames_sha256"]
