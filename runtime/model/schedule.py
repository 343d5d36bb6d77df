"""Sampler constants: every step is a linear combination of a few tensors.

With x_k the latents before step k, v_k the velocity there and the prediction of the clean
latents m_k = x_k - sigma_k v_k, every sampler is

    x_{k+1} = initial * x_0 + sum_{i<k} history_i * m_i + prediction * m_k + noise * n_k

so that a `Schedule` of numbers is all the denoise loop (`fastwan.runtime.model.loop`) has to know.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Axes = tuple[int, int, int, int, int]

TRAIN_TIMESTEPS = 1000


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
        name: of the sampler, for people.
        steps: in the order in which they run.
        noise_axes: noise is drawn for the latent axes [B, C, T, H, W] in this order and
            permuted back, as the reference draws it.
    """

    name: str
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
