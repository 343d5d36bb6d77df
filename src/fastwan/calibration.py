"""Scales of static FP8 activations: the largest values that a model's linears see in its own runs.

The torch module plays prompts through the denoise loop, quantised as it is when activation scales
are computed, and each linear remembers the largest magnitude of its input. What the calibration
sees is a short video: the statistics of an activation do not depend on how many tokens there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fastwan.config import SamplerSpec, VideoShape
from fastwan.errors import BadInput
from fastwan.export.attentions import EXACT
from fastwan.export.checkpoint.reader import Checkpoint
from fastwan.export.fp8 import scale_of
from fastwan.export.models.layers import Linear
from fastwan.export.models.umt5 import UMT5Encoder
from fastwan.export.models.wan import WanDiT
from fastwan.export.recipes import BF16, Recipe
from fastwan.export.weights import load_module
from fastwan.files import open_regular
from fastwan.progress import Progress, stage
from fastwan.runtime.model.executor import Array
from fastwan.runtime.model.loop import combine, denoise
from fastwan.runtime.model.noise import DEFAULT_SEED, draw, generator_for
from fastwan.runtime.model.prompt import check_prompt
from fastwan.runtime.model.samplers import schedule_of
from fastwan.runtime.text import encode_prompt, parse_tokenizer

CALIBRATED = "static"
"""Row of `fastwan.config.ACTIVATIONS` whose scales come from here."""

SHAPE = VideoShape(height=96, width=160, num_frames=9)
"""Video that is played: 180 tokens."""

PROMPTS = (
    "A red fox runs through fresh snow at sunrise, slow motion, film grain",
    "Aerial view of a coastal city at night, headlights along the bay, light rain",
    "A potter shapes a bowl of wet clay on a spinning wheel, close-up of the hands",
    "An astronaut in a white suit walks across a field of sunflowers, 4k",
)
"""Played where no others are given."""

_PROMPT_BYTES = 1 << 20


def read_prompts(path: Path | None) -> tuple[str, ...]:
    """Prompts of a UTF-8 file, one a line; `PROMPTS` without a file.

    Raises:
        BadInput: no regular file, not UTF-8, or no prompt in it.
    """
    if path is None:
        return PROMPTS
    try:
        with open_regular(path) as stream:
            content = stream.read(_PROMPT_BYTES + 1)
    except OSError as error:
        raise BadInput(
            f"prompts cannot be read: {error.strerror}", where=str(path), fix="check --calibration"
        ) from None
    try:
        lines = [line.strip() for line in content.decode("utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise BadInput(f"not UTF-8: {error.reason}", where=str(path)) from None
    prompts = tuple(line for line in lines if line)
    if not prompts or len(content) > _PROMPT_BYTES:
        raise BadInput(
            f"no list of prompts, one a line, of at most {_PROMPT_BYTES:,} bytes",
            where=str(path),
            fix="write a prompt a line, or leave --calibration out",
        )
    for prompt in prompts:
        check_prompt(prompt)
    return prompts


def calibrate(
    checkpoint: Checkpoint,
    recipe: Recipe,
    sampler: SamplerSpec,
    prompts: Sequence[str],
    notes: list[str],
    progress: Progress,
) -> dict[str, float]:
    """Scale of each targeted linear's activation, by the linear's name in the graph.

    Args:
        checkpoint: its text encoder makes the embeddings; without one they are drawn.
        recipe: with activation scales that are computed.
        prompts: a video each, the first noise of a seed of its own.
        notes: told where embeddings were drawn.

    Raises:
        BadInput: a tensor of the checkpoint is at fault.
    """
    config = checkpoint.dit_config
    module = load_module(checkpoint.transformer, config, SHAPE, recipe)
    module.set_quantizers(activations=True, attention=EXACT)
    linears = {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, Linear) and part.recipe is recipe
    }
    amax = {name: torch.zeros(()) for name in linears}

    def watch(name: str, linear: Linear) -> None:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0] if linear.tokens is None else inputs[0][:, : linear.tokens]
            amax[name] = torch.maximum(amax[name], x.abs().amax().float())

        linear.register_forward_pre_hook(hook)

    for name, linear in linears.items():
        watch(name, linear)
    schedule = schedule_of(sampler)
    shape = SHAPE.latents(config.in_channels)
    with stage(progress, "calibrate activations", len(prompts), "prompts"), torch.no_grad():
        for seed, text in enumerate(_embeddings(checkpoint, prompts, notes), DEFAULT_SEED):
            noises = draw(shape, schedule, generator_for(None, seed))
            denoise(_velocity(module, text), noises[0], schedule, noises[1:], combine=combine)
            progress.advance(1, f"prompt {seed - DEFAULT_SEED + 1}")
    return {name: float(scale_of(largest)) for name, largest in amax.items()}


def _velocity(module: WanDiT, text: Tensor) -> Callable[[Array, int], Array]:
    def velocity(latents: Array, timestep: int) -> Array:
        result = module(torch.from_numpy(latents), torch.tensor([float(timestep)]), text)
        return np.asarray(result.float().numpy())

    return velocity


def _embeddings(
    checkpoint: Checkpoint, prompts: Sequence[str], notes: list[str]
) -> Iterator[Tensor]:
    """Prompt embeddings [1, text_length, text_dim], zero rows behind each prompt."""
    config = checkpoint.dit_config
    if checkpoint.text_encoder is None or checkpoint.text_config is None:
        notes.append(
            "activations were calibrated with drawn prompt embeddings, without the text encoder"
        )
        for seed, prompt in enumerate(prompts):
            rows = min(len(prompt.split()) + 1, config.text_length)
            text = torch.zeros(1, config.text_length, config.text_dim)
            generator = torch.Generator().manual_seed(seed)
            text[:, :rows] = torch.randn(1, rows, config.text_dim, generator=generator)
            yield text
        return
    assert checkpoint.tokenizer is not None
    tokenizer = parse_tokenizer(
        checkpoint.tokenizer["tokenizer.json"], "tokenizer.json", config.text_length
    )
    with torch.device("meta"):
        encoder = UMT5Encoder(checkpoint.text_config, BF16())
    state = {
        name: checkpoint.text_encoder.read(name).to(torch.bfloat16) for name in encoder.state_dict()
    }
    encoder.load_state_dict(state, strict=True, assign=True)
    for prompt in prompts:
        ids = encode_prompt(tokenizer, prompt, config.text_length)
        hidden = encoder(torch.tensor([ids]))
        text = torch.zeros(1, config.text_length, config.text_dim)
        text[:, : hidden.shape[1]] = hidden.float()
        yield text
