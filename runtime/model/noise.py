"""Gaussian noise exactly as the reference draws it: bf16, from a generator on the CPU."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from fastwan.errors import BadInput, shown
from fastwan.runtime.model.checks import integer
from fastwan.runtime.model.given import given_torch, is_generator
from fastwan.runtime.model.normal import NormalGenerator
from fastwan.runtime.model.schedule import Schedule

if TYPE_CHECKING:
    import torch

DEFAULT_SEED = 1024
"""Seed of the published run."""

Noise = Literal["torch-cpu-bf16", "generator", "latents"]
"""What the initial noise of a video is. The first is drawn of its seed by `NormalGenerator`, with
the bytes of torch's generator on the CPU, whether torch is installed or not; the others are of
a `torch.Generator` or of latents that the caller gave."""


class Normals(Protocol):
    """Draws normal numbers, one array after the other."""

    def normal(self, shape: Sequence[int]) -> npt.NDArray[np.float32]:
        """Numbers of mean 0 and deviation 1, fp32 with bf16 values."""


class _GivenGenerator:
    """A `torch.Generator` of the caller's."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def normal(self, shape: Sequence[int]) -> npt.NDArray[np.float32]:
        loaded = given_torch()
        assert loaded is not None
        drawn = loaded.randn(tuple(shape), generator=self._generator, dtype=loaded.bfloat16)
        numbers: npt.NDArray[np.float32] = drawn.float().numpy()
        return numbers


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
    if not is_generator(generator):
        raise BadInput(
            f"generator is {shown(generator)}, not a torch.Generator",
            where="generator",
            fix='torch.Generator("cpu").manual_seed(0), or seed=0',
        )
    device = generator.device
    if device.type != "cpu":
        raise BadInput(
            f"generator lives on {device}, where it draws other numbers than the reference",
            where="generator",
            fix='torch.Generator("cpu")',
        )


def noise_of(generator: object, latents: object) -> Noise:
    """What the noise of a request is; latents come before a generator, and both before a seed."""
    if latents is not None:
        return "latents"
    return "torch-cpu-bf16" if generator is None else "generator"


def generator_for(
    generator: torch.Generator | None,
    seed: object,
    normals: Callable[[int], Normals] = NormalGenerator,
) -> Normals:
    """What draws of `generator`, or of `seed` where that is None.

    Args:
        normals: starts from a seed; the numbers of each such function are the same.

    Raises:
        BadInput: see `check_generator` and `seed_of`.
    """
    if generator is None:
        return normals(seed_of(seed))
    check_generator(generator)
    return _GivenGenerator(generator)


def draw(
    shape: tuple[int, ...], schedule: Schedule, generator: Normals
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
    return [
        np.ascontiguousarray(generator.normal(drawn_shape).transpose(back))
        for _ in range(1 + schedule.noises)
    ]
