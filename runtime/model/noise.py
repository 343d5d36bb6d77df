"""Gaussian noise exactly as the reference draws it: bf16, from a generator on the CPU."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from fastwan.errors import BadInput
from fastwan.runtime.model.schedule import Schedule

DEFAULT_SEED = 1024
"""Seed of the published run."""


def generator_for(generator: torch.Generator | None, seed: int) -> torch.Generator:
    """`generator`, or a new one on the CPU with `seed`.

    Raises:
        BadInput: a generator of another device (its numbers would differ), or a seed out of range.
    """
    if generator is None:
        if not 0 <= seed < 2**64:
            raise BadInput(f"seed {seed} is out of range", where="seed", fix="0 to 2**64 - 1")
        return torch.Generator("cpu").manual_seed(seed)
    if generator.device.type != "cpu":
        raise BadInput(
            f"generator lives on {generator.device}",
            where="generator",
            fix='torch.Generator("cpu")',
        )
    return generator


def draw(
    shape: tuple[int, ...], schedule: Schedule, generator: torch.Generator
) -> list[npt.NDArray[np.float32]]:
    """Initial latents and then the noise of every step that takes some, all before the loop.

    Args:
        shape: of the latents, [B, C, T, H, W].

    Returns:
        1 + `schedule.noises` arrays of `shape`, fp32 with bf16 values.
    """
    axes = schedule.noise_axes
    drawn_shape = [shape[axis] for axis in axes]
    back = np.argsort(axes)
    noises = []
    for _ in range(1 + schedule.noises):
        drawn = torch.randn(drawn_shape, generator=generator, dtype=torch.bfloat16)
        noises.append(np.ascontiguousarray(drawn.float().numpy().transpose(back)))
    return noises
