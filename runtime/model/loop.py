"""The denoise loop: a pure function of a model callable, latents and sampler constants.

It never looks into a tensor. What the tensors are (arrays here, device buffers or entries of a
recorded schedule elsewhere) is up to the `velocity` and `combine` it is given, so the same loop
runs eagerly, under a CUDA graph capture and on a recording device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fastwan.runtime.model.schedule import Schedule

A = TypeVar("A")

Velocity = Callable[[A, int], A]
"""(latents, timestep) -> velocity of the same shape."""

Combine = Callable[[Sequence[tuple[float, A]]], A]
"""Weighted sum of tensors of one shape; weights are never zero."""

OnStep = Callable[[int, int, A], "A | None"]
"""(step, timestep, latents after the step) -> latents to go on with, None to keep them."""


def combine(terms: Sequence[tuple[float, npt.NDArray[Any]]]) -> npt.NDArray[np.float32]:
    """Weighted sum of arrays: accumulated in fp64, rounded to fp32 once."""
    total = np.zeros(terms[0][1].shape, np.float64)
    for weight, tensor in terms:
        total += weight * tensor.astype(np.float64)
    return total.astype(np.float32)


def denoise(
    velocity: Velocity[A],
    latents: A,
    schedule: Schedule,
    noises: Sequence[A] = (),
    *,
    combine: Combine[A],
    on_step: OnStep[A] | None = None,
) -> A:
    """Run every step of `schedule` and return the clean latents.

    The state is what `combine` returns. On the CPU that is fp32, each step rounded once from
    fp64: this contains the reference's fp64 x0 of DMD, and differs from the reference in that
    nothing between two steps is rounded to bf16 (the model rounds its own input).

    Args:
        velocity: the model; called once a step.
        latents: pure noise, [B, C, T, H, W].
        schedule: constants of the sampler.
        noises: fresh noise like `latents`, one for each of `schedule.noises`, drawn beforehand.
        combine: weighted sum; one call a step, and one more each where a later step reads the
            prediction and where the anchor moves.
        on_step: called after each step; may replace the latents.
    """
    if len(noises) != schedule.noises:
        raise ValueError(f"{schedule.name} takes {schedule.noises} noises, not {len(noises)}")
    anchor = latents
    fresh = iter(noises)
    predictions: dict[int, A] = {}
    for index, step in enumerate(schedule.steps):
        flow = velocity(latents, step.timestep)
        terms = _terms(step.weights, anchor, predictions, step.sigma, latents, flow)
        if step.noise:
            terms.append((step.noise, next(fresh)))
        moved = _terms(step.anchor, anchor, predictions, step.sigma, latents, flow)
        if schedule.last_use(index) > index:
            predictions[index] = combine([(1.0, latents), (-step.sigma, flow)])
        predictions = {i: p for i, p in predictions.items() if schedule.last_use(i) > index}
        latents = combine(terms)
        anchor = combine(moved) if moved else anchor
        if on_step is not None:
            replaced = on_step(index, step.timestep, latents)
            latents = latents if replaced is None else replaced
    return latents


def guided(
    velocities: Sequence[Velocity[A]], guidance: float, *, combine: Combine[A]
) -> Velocity[A]:
    """Velocity of classifier-free guidance: g * prompt + (1 - g) * negative prompt.

    Ho and Salimans 2022, eq. 6, as diffusers' Wan pipeline writes it.

    Args:
        velocities: of the prompt and, where there is guidance, of the negative prompt.
        guidance: scale g; 1 is the prompt's velocity alone.
        combine: weighted sum.
    """
    if guidance == 1:
        return velocities[0]
    prompt, negative = velocities

    def velocity(latents: A, timestep: int) -> A:
        flows = prompt(latents, timestep), negative(latents, timestep)
        return combine([(guidance, flows[0]), (1 - guidance, flows[1])])

    return velocity


def _terms(
    weights: Sequence[float],
    anchor: A,
    predictions: Mapping[int, A],
    sigma: float,
    latents: A,
    flow: A,
) -> list[tuple[float, A]]:
    """Terms of a sum with `Step.weights`, those that are not zero; none without weights.

    Args:
        predictions: of earlier steps, by step; those that are left out have no weight.
        sigma, latents, flow: of this step, whose prediction is latents - sigma * flow.
    """
    if not weights:
        return []
    terms = [(weights[0], anchor)]
    terms += [(weights[1 + index], prediction) for index, prediction in predictions.items()]
    terms += [(weights[-1], latents), (-sigma * weights[-1], flow)]
    return [term for term in terms if term[0]]
