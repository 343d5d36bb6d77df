"""Fifty guided steps of the tiny model against diffusers' own pipeline."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastwan.config import SAMPLERS, VideoShape
from fastwan.export.attentions import EXACT
from fastwan.export.checkpoint.reader import open_checkpoint
from fastwan.export.recipes import BF16
from fastwan.export.weights import load_module
from fastwan.runtime.model.loop import combine, denoise, guided
from fastwan.runtime.model.samplers import schedule_of

SHAPE = VideoShape(height=32, width=48, num_frames=1)


def drawn(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).bfloat16().float()


@torch.no_grad()
def test_fifty_guided_steps_are_those_of_wan_pipeline(tiny_checkpoint: Path) -> None:
    library: Any = pytest.importorskip("diffusers", reason="diffusers is not installed")
    checkpoint = open_checkpoint(tiny_checkpoint, components=("dit",))
    config = checkpoint.dit_config
    latents = drawn(SHAPE.latents(config.in_channels), 1)
    texts = [drawn((1, config.text_length, config.text_dim), seed) for seed in (2, 3)]

    stored = json.loads((tiny_checkpoint / "transformer" / "config.json").read_text())
    model = library.WanTransformer3DModel.from_config(stored)
    weights = checkpoint.transformer
    model.load_state_dict({name: weights.read(name) for name in weights.names()})
    model = model.float().eval()
    scheduler = library.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = library.WanPipeline(None, None, None, scheduler, model)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        prompt_embeds=texts[0],
        negative_prompt_embeds=texts[1],
        height=SHAPE.height,
        width=SHAPE.width,
        num_frames=SHAPE.num_frames,
        num_inference_steps=50,
        guidance_scale=5.0,
        latents=latents,
        output_type="latent",
    ).frames

    module = load_module(weights, config, SHAPE, BF16(), torch.float32)
    module.set_quantizers(activations=False, attention=EXACT)

    def velocity(state: np.ndarray, timestep: int, text: torch.Tensor) -> np.ndarray:
        made = module(torch.from_numpy(state), torch.tensor([float(timestep)]), text)
        return np.asarray(made.numpy())

    def played(guidance: float) -> np.ndarray:
        schedule = schedule_of(SAMPLERS["unipc-50"])
        velocities = [partial(velocity, text=text) for text in texts]
        made = guided(velocities, guidance, combine=combine)
        return denoise(made, latents.numpy(), schedule, combine=combine)

    def distance(made: np.ndarray) -> float:
        reference = expected.numpy()
        return float(np.linalg.norm(made - reference) / np.linalg.norm(reference))

    assert len(scheduler.timesteps) == 50
    assert distance(played(5.0)) < 1e-5
    # The prompt alone is another video.
    assert distance(played(1.0)) > 1e-2
