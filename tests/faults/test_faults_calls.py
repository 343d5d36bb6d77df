"""Faults in calls of a pipeline: refused in one line, without a trace in the next call."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastwan.errors import FastWanError
from fastwan.runtime.pipeline import FastWanPipeline

pytestmark = pytest.mark.trt

NAN, INF = float("nan"), float("inf")
PROMPT = "a red fox"
LATENTS = (1, 16, 3, 12, 20)


@dataclass(frozen=True)
class Call:
    """Arguments of a call with one fault, and what stands in its place in the twin."""

    name: str
    fault: dict[str, Any]
    twin: dict[str, Any]
    words: str


def latents(value: float) -> torch.Tensor:
    made = torch.zeros(LATENTS)
    made[0, 0, 0, 0, 0] = value
    return made


def embeds(value: float, width: int = 64) -> torch.Tensor:
    return torch.full((1, 8, width), value)


def giving(value: float) -> Callable[..., dict[str, torch.Tensor]]:
    """A callback of diffusers that puts a value into the latents."""

    def callback(
        pipeline: object, step: int, timestep: int, given: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        given["latents"][0, 0, 0, 0, 0] = value
        return given

    return callback


TEXT = {"prompt": PROMPT}
CALLS = (
    Call("guidance", {"guidance_scale": 5.0}, {"guidance_scale": 1.0}, "guidance"),
    Call("negative prompt", {"negative_prompt": "blurry", "guidance_scale": 5.0},
         {"negative_prompt": None, "guidance_scale": 1.0}, "guidance|negative"),
    Call("steps", {"num_inference_steps": 50}, {"num_inference_steps": 3}, "50 steps"),
    Call("height", {"height": 480}, {"height": 96}, "height 480"),
    Call("height in words", {"height": "96"}, {"height": 96}, "height"),
    Call("frames", {"num_frames": 81}, {"num_frames": 9}, "num_frames 81"),
    Call("no videos", {"num_videos_per_prompt": 0}, {"num_videos_per_prompt": 1},
         "num_videos_per_prompt"),
    Call("half a seed", {"seed": 1.5}, {"seed": 1}, "seed"),
    Call("a seed below zero", {"seed": -1}, {"seed": 0}, "seed"),
    Call("a seed of thousands of digits", {"seed": 10**5000}, {"seed": 10**15}, "seed"),
    Call("an output type", {"output_type": "gif"}, {"output_type": "latent"}, "gif"),
    Call("an array as output type", {"output_type": np.zeros(2)}, {"output_type": "latent"},
         "output_type"),
    Call("a sampler", {"sampler": "euler"}, {"sampler": "unipc"}, "euler"),
    Call("a list of samplers", {"sampler": ["unipc"]}, {"sampler": "unipc"}, "unipc"),
    Call("a number as prompt", {"prompt": 5}, TEXT, "prompt"),
    Call("no prompt", {"prompt": None}, TEXT, "prompt"),
    Call("no prompts", {"prompt": []}, TEXT, "prompt"),
    Call("a blank one of two", {"prompt": [PROMPT, " "]}, {"prompt": [PROMPT]}, "blank"),
    Call("half a surrogate pair", {"prompt": "\ud800"}, TEXT, "surrogate"),
    Call("a generator that is none", {"generator": 5},
         {"generator": torch.Generator("cpu").manual_seed(5)}, "generator"),
    Call("two generators for one video", {"generator": [torch.Generator("cpu")] * 2},
         {"generator": [torch.Generator("cpu").manual_seed(5)]}, "generator"),
    Call("latents of another shape", {"latents": torch.zeros(1, 16, 3, 12, 12)},
         {"latents": latents(0.0)}, "latents"),
    Call("latents of NaN", {"latents": latents(NAN)}, {"latents": latents(0.5)}, "latents"),
    Call("latents of Inf", {"latents": latents(INF)}, {"latents": latents(0.5)}, "latents"),
    Call("latents of 1e39", {"latents": latents(1.0).double() * 1e39},
         {"latents": latents(1.0).double()}, "latents"),
    Call("embeds of NaN", {"prompt": None, "prompt_embeds": embeds(NAN)},
         {"prompt": None, "prompt_embeds": embeds(0.5)}, "prompt_embeds"),
    Call("embeds of another width", {"prompt": None, "prompt_embeds": embeds(0.5, 32)},
         {"prompt": None, "prompt_embeds": embeds(0.5)}, "prompt_embeds"),
    Call("a callback that gives NaN", {"callback_on_step_end": giving(NAN)},
         {"callback_on_step_end": giving(0.5)}, "NaN"),
)  # fmt: skip


@pytest.fixture(scope="module")
def pipe(tiny_bundle: Path) -> FastWanPipeline:
    return FastWanPipeline.from_bundle(tiny_bundle, "cpu")


def call(pipe: FastWanPipeline, **arguments: Any) -> np.ndarray:
    whole = {"prompt": PROMPT, "output_type": "latent", **arguments}
    if "generator" not in arguments:
        whole.setdefault("seed", 7)
    return np.asarray(pipe(**whole).frames)


@pytest.fixture(scope="module")
def alone(pipe: FastWanPipeline) -> np.ndarray:
    """What a call gives where no other went before."""
    return call(pipe)


@pytest.mark.parametrize("row", CALLS, ids=lambda row: row.name)
def test_a_call_with_a_fault_is_refused(
    pipe: FastWanPipeline, alone: np.ndarray, row: Call
) -> None:
    assert np.isfinite(call(pipe, **row.twin)).all()
    with pytest.raises(FastWanError, match=row.words) as refused:
        call(pipe, **row.fault)
    assert refused.value.exit_code == 2
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500
    assert np.array_equal(call(pipe), alone)


class Mine(Exception):
    """Of the caller's own callback."""


def _raises(pipe: FastWanPipeline) -> None:
    def callback(*_: object) -> dict[str, torch.Tensor]:
        raise Mine

    with pytest.raises(Mine):
        call(pipe, callback_on_step_end=callback)


def _abandoned(pipe: FastWanPipeline) -> None:
    from fastwan.runtime.request import Request

    frames = pipe.frames(Request(prompt="another", seed=1))
    next(frames)
    del frames


def _interrupted(pipe: FastWanPipeline) -> None:
    def callback(
        owner: Any, step: int, timestep: int, given: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        owner._interrupt = True
        return given

    call(pipe, callback_on_step_end=callback)


def _beside(pipe: FastWanPipeline) -> None:
    """Threads whose calls are refused while others are served."""
    failed = []

    def work() -> None:
        try:
            call(pipe, latents=latents(NAN))
        except FastWanError as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for each in threads:
        each.start()
    call(pipe, prompt="another", seed=3)
    for each in threads:
        each.join()
    assert len(failed) == 3


@pytest.mark.parametrize("disturb", [_raises, _abandoned, _interrupted, _beside])
def test_a_call_that_ends_badly_leaves_no_trace(
    pipe: FastWanPipeline, alone: np.ndarray, disturb: Callable[[FastWanPipeline], None]
) -> None:
    assert np.array_equal(call(pipe), alone)
    disturb(pipe)
    assert np.array_equal(call(pipe), alone)
