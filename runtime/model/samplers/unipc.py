"""UniPC of order 2, B(h) = expm1(h) ("bh2"), predicting x0 (Zhao et al. 2023)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from fastwan.config import SamplerSpec
from fastwan.runtime.model.schedule import MAX_TERMS, TRAIN_TIMESTEPS, Schedule, Step, shifted

Vector = npt.NDArray[np.float64]


def schedule(spec: SamplerSpec) -> Schedule:
    """Constants of ``spec.steps`` steps.

    With ``spec.shift_twice`` the noise levels are those of FastVideo's run: the end points of the
    training schedule are shifted and stored in fp32, and the line between them is shifted a second
    time. Without it they are those of diffusers' ``UniPCMultistepScheduler`` with flow sigmas: the
    line from 1 to 1/1000, shifted once.
    """
    levels = _shifted_twice(spec) if spec.shift_twice else _shifted_once(spec)
    timesteps = [int(value) for value in levels * TRAIN_TIMESTEPS]
    sigmas = [float(value) for value in levels.astype(np.float32)] + [0.0]

    # A state is a vector of weights over (anchor, m_0, ..., m_{n-1}).
    basis = np.eye(spec.steps + 1)
    state = basis[0]
    corrected = state
    order = 1
    steps = []
    for k in range(spec.steps):
        predictions = basis[1 : k + 2]
        if k > 0:
            # m_k is known now: redo the step that led here with it (UniC of `order`).
            corrected = _bh_update(sigmas, k, corrected, predictions, order, correct=True)
        order = min(2, k + 1, spec.steps - k)
        state = _bh_update(sigmas, k + 1, corrected, predictions, order, correct=False)
        weights = [float(weight) for weight in state]
        step = Step(
            timestep=timesteps[k],
            sigma=sigmas[k],
            initial=weights[0],
            history=tuple(weights[1 : k + 1]),
            prediction=weights[k + 1],
        )
        # A prediction is two tensors, and the next step reads one more.
        if np.count_nonzero(state) + 2 > MAX_TERMS:
            step = replace(step, anchor=tuple(float(weight) for weight in corrected[: k + 2]))
            corrected = basis[0]
        steps.append(step)
    return Schedule(spec.name, tuple(steps), guidance=spec.guidance)


def _shifted_twice(spec: SamplerSpec) -> Vector:
    table = 1.0 - np.linspace(1.0, 1.0 / TRAIN_TIMESTEPS, TRAIN_TIMESTEPS)
    ends = shifted(table[[-1, 0]].astype(np.float32), spec.shift).astype(np.float32)
    line = np.linspace(float(ends[0]), float(ends[1]), spec.steps + 1)[:-1]
    return np.asarray(shifted(line, spec.shift), np.float64)


def _shifted_once(spec: SamplerSpec) -> Vector:
    line = np.linspace(1.0, 1.0 / TRAIN_TIMESTEPS, spec.steps + 1)[:-1]
    levels = np.asarray(shifted(line, spec.shift), np.float64)
    levels[0] -= 1e-6  # where lambda would be infinite, as diffusers does
    return levels


def _bh_update(
    sigmas: list[float],
    target: int,
    state: Vector,
    predictions: Vector,
    order: int,
    *,
    correct: bool,
) -> Vector:
    """State at ``sigmas[target]`` from the one at ``sigmas[target - 1]``.

    Equations 3 and 8 of the UniPC paper for data prediction, alpha = 1 - sigma and
    lambda = log(alpha / sigma). A predictor of order p uses the last p predictions; a corrector
    uses the one at the target besides. Orders are 1 and 2, where the paper's simplification
    a_1 = 1/2 replaces the solution of a system with one unknown.
    """
    here = target - 1
    if sigmas[target] == 0.0:
        # lambda is infinite: the exponential integrator keeps nothing of the state, and the last
        # step is of order 1.
        kept: Vector = predictions[here]
        return kept

    def log_snr(index: int) -> float:
        return float(np.log1p(-sigmas[index]) - np.log(sigmas[index]))

    h = log_snr(target) - log_snr(here)
    alpha = 1.0 - sigmas[target]
    b_h = np.expm1(-h)
    ratios = [(log_snr(here - i) - log_snr(here)) / h for i in range(1, order)]
    differences = [
        (predictions[here - i] - predictions[here]) / ratio for i, ratio in enumerate(ratios, 1)
    ]
    if correct:
        ratios.append(1.0)
        differences.append(predictions[target] - predictions[here])
    moved = (sigmas[target] / sigmas[here]) * state - alpha * b_h * predictions[here]
    if differences:
        rho = _rho(np.array(ratios), h)
        moved = moved - alpha * b_h * (rho @ np.stack(differences))
    return np.asarray(moved)


def _rho(ratios: Vector, h: float) -> Vector:
    """Weights of the differences: R(r) rho = phi(-h) / B(h), or 1/2 where there is only one."""
    if len(ratios) == 1:
        return np.array([0.5])
    hh = -h
    phi = np.expm1(hh) / hh - 1.0
    right, factorial = [], 1.0
    for i in range(1, len(ratios) + 1):
        right.append(phi * factorial / np.expm1(hh))
        factorial *= i + 1
        phi = phi / hh - 1.0 / factorial
    powers = np.stack([ratios**i for i in range(len(ratios))])
    rho: Vector = np.linalg.solve(powers, np.array(right))
    return rho
