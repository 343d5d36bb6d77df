"""Gaussian noise exactly as the reference draws it: bf16, from a generator on the CPU."""

from __future__ import annotations

import secrets

import numpy as np
import numpy.typing as npt
import torch

from fastwan.errors import BadInput
from fastwan.runtime.model.checks import integer, shown
from fastwan.runtime.model.schedule import Schedule

DEFAULT_SEED = 1024
"""Seed of the published run."""


def seed_of(value: object) -> int:
    """A seed as an `int`; None draws a fresh one.

    Raises:
        BadInput: not an integer of Python, numpy or torch from 0 to 2**64 - 1.
    """
    if value is None:
        return secrets.randbelow(2**63)
    seed = integer(value, "seed", "give an integer, or None for a fresh one")
    if not 0 <= seed < 2**64:
        raise BadInput(f"seed {seed} is out of range", where="seed", fix="0 to 2**64 - 1")
    return seed


def check_generator(generator: object) -> None:
    """Refuse what the reference's numbers cannot be drawn from.

    Raises:
        BadInput: no `torch.Generator`, or one of another device, whose numbers would differ.
    """
    if not isinstance(generator, torch.Generator):
        raise BadInput(
            f"generator is {shown(generator)}, not a torch.Generator",
            where="generator",
            fix='torch.Generator("cpu").manual_seed(0), or seed=0',
        )
    if generator.device.type != "cpu":
        raise BadInput(
            f"generator lives on {generator.device}, where it draws other numbers than the "
            "reference",
            where="generator",
            fix='torch.Generator("cpu")',
        )


def generator_for(generator: torch.Generator | None, seed: object) -> torch.Generator:
    """`generator`, or a new one on the CPU with `seed`.

    Raises:
        BadInput: see `check_generator` and `seed_of`.
    """
    if generator is None:
        return torch.Generator("cpu").manual_seed(seed_of(seed))
    check_generator(generator)
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
