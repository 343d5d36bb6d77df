"""Sampler constants, derived: every step is a linear combination of a few tensors.

With x_k the latents before step k, v_k the velocity there and the prediction of the clean
latents m_k = x_k - sigma_k v_k, both samplers are

    x_{k+1} = initial * x_0 + sum_{i<k} history_i * m_i + prediction * m_k + noise * n_k

so that a `Schedule` of numbers is all the denoise loop (`fastwan.runtime.model.loop`) has to know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastwan.config import SamplerName, lookup

Axes = tuple[int, int, int, int, int]
Vector = npt.NDArray[np.float64]

TRAIN_TIMESTEPS = 1000
UNIPC_STEPS = 3
UNIPC_SHIFT = 3.0
DMD_TIMESTEPS = (1000, 757, 522)
DMD_SHIFT = 8.0


@dataclass(frozen=True)
class Step:
    """One denoising step.

    Attributes:
        timestep: what the model is told, in training timesteps (0 to 1000).
        sigma: noise level of the latents before the step; m = latents - sigma * velocity.
        initial: weight of the initial latents x_0.
        history: weights of the predictions m_0 .. m_{k-1} of earlier steps.
        prediction: weight of this step's prediction m_k.
        noise: weight of the fresh noise n_k of this step.
    """

    timestep: int
    sigma: float
    initial: float
    history: tuple[float, ...]
    prediction: float
    noise: float = 0.0


@dataclass(frozen=True)
class Schedule:
    """Constants of a sampler.

    Attributes:
        name: row of `SAMPLERS`.
        steps: in the order in which they run.
        noise_axes: noise is drawn for the latent axes [B, C, T, H, W] in this order and
            permuted back, as the reference draws it.
    """

    name: SamplerName
    steps: tuple[Step, ...]
    noise_axes: Axes = (0, 1, 2, 3, 4)

    @property
    def noises(self) -> int:
        """Tensors of fresh noise that the loop consumes, beside the initial latents."""
        return sum(step.noise != 0 for step in self.steps)

    def uses_prediction(self, index: int) -> bool:
        """Whether a later step reads the prediction of step `index`."""
        return any(step.history[index] != 0 for step in self.steps[index + 1 :])


def shifted(sigma: npt.NDArray[np.floating], shift: float) -> npt.NDArray[np.floating]:
    """Flow-matching time shift: s*sigma / (1 + (s-1)*sigma) (Esser et al. 2024, eq. 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def unipc(num_steps: int = UNIPC_STEPS, shift: float = UNIPC_SHIFT) -> Schedule:
    """UniPC of order 2, B(h) = expm1(h) ("bh2"), predicting x0 (Zhao et al. 2023).

    The noise levels are those of the reference: the end points of the training schedule are
    shifted and stored in fp32, and the line between them is shifted a second time.
    """
    table = 1.0 - np.linspace(1.0, 1.0 / TRAIN_TIMESTEPS, TRAIN_TIMESTEPS)
    ends = shifted(table[[-1, 0]].astype(np.float32), shift).astype(np.float32)
    line = np.linspace(float(ends[0]), float(ends[1]), num_steps + 1)[:-1]
    doubly_shifted = shifted(line, shift)
    timesteps = [int(value) for value in doubly_shifted * TRAIN_TIMESTEPS]
    sigmas = [float(value) for value in doubly_shifted.astype(np.float32)] + [0.0]

    # A state is a vector of weights over (x_0, m_0, ..., m_{n-1}).
    basis = np.eye(num_steps + 1)
    state = basis[0]
    corrected = state
    order = 1
    steps = []
    for k in range(num_steps):
        predictions = basis[1 : k + 2]
        if k > 0:
            # m_k is known now: redo the step that led here with it (UniC of `order`).
            corrected = _bh_update(sigmas, k, corrected, predictions, order, correct=True)
        order = min(2, k + 1, num_steps - k)
        state = _bh_update(sigmas, k + 1, corrected, predictions, order, correct=False)
        weights = [float(weight) for weight in state]
        steps.append(
            Step(
                timestep=timesteps[k],
                sigma=sigmas[k],
                initial=weights[0],
                history=tuple(weights[1 : k + 1]),
                prediction=weights[k + 1],
            )
        )
    return Schedule("unipc", tuple(steps))


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


def dmd(timesteps: tuple[int, ...] = DMD_TIMESTEPS, shift: float = DMD_SHIFT) -> Schedule:
    """Distribution matching distillation: predict x0, add fresh noise at the next level, repeat.

    A timestep's sigma is the entry of the shifted fp32 training table whose own timestep is the
    nearest. The noise is drawn frames before channels, as the reference's DMD pipeline does.
    """
    table = shifted(
        np.arange(TRAIN_TIMESTEPS, 0, -1, dtype=np.float32) / TRAIN_TIMESTEPS, shift
    ).astype(np.float32)
    sigmas = [float(table[np.abs(table * TRAIN_TIMESTEPS - t).argmin()]) for t in timesteps]
    following = [*sigmas[1:], 0.0]
    steps = tuple(
        Step(
            timestep=timestep,
            sigma=sigma,
            initial=0.0,
            history=(0.0,) * k,
            prediction=1.0 - after,
            noise=after,
        )
        for k, (timestep, sigma, after) in enumerate(zip(timesteps, sigmas, following, strict=True))
    )
    return Schedule("dmd", steps, noise_axes=(0, 2, 1, 3, 4))


SAMPLERS: dict[str, Callable[[], Schedule]] = {"unipc": unipc, "dmd": dmd}


def schedule_for(name: str) -> Schedule:
    """The published schedule of sampler `name`.

    Raises:
        BadInput: no such sampler.
    """
    return lookup(SAMPLERS, name)()
