"""Sampler constants: every step is a linear combination of a few tensors.

With x_k the latents before step k, v_k the velocity there and the prediction of the clean
latents m_k = x_k - sigma_k v_k, every sampler is

    x_{k+1} = initial * a + sum_{i<k} history_i * m_i + prediction * m_k + noise * n_k

so that a `Schedule` of numbers is all the denoise loop (`fastwan.runtime.model.loop`) has to know.
The anchor a is x_0. In a long schedule of a multistep method every x_{k+1} would still depend on
all predictions since, so a step may put a sum of the same tensors in the anchor's place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Axes = tuple[int, int, int, int, int]

TRAIN_TIMESTEPS = 1000

MAX_TERMS = 8
"""Most tensors that a sum of a schedule reads, latents and velocity for a prediction: what the
kernel of the plugin library takes."""


@dataclass(frozen=True)
class Step:
    """One denoising step.

    Attributes:
        timestep: what the model is told, in training timesteps (0 to 1000).
        sigma: noise level of the latents before the step; m = latents - sigma * velocity.
        initial: weight of the anchor, which is x_0 at first.
        history: weights of the predictions m_0 .. m_{k-1} of earlier steps.
        prediction: weight of this step's prediction m_k.
        noise: weight of the fresh noise n_k of this step.
        anchor: `weights` of the sum that is the anchor of later steps; empty where it stays.
    """

    timestep: int
    sigma: float
    initial: float
    history: tuple[float, ...]
    prediction: float
    noise: float = 0.0
    anchor: tuple[float, ...] = ()

    @property
    def weights(self) -> tuple[float, ...]:
        """Weights of the anchor and of m_0 .. m_k."""
        return (self.initial, *self.history, self.prediction)

    def reads(self, index: int) -> bool:
        """Whether this step reads the prediction of an earlier step."""
        return any(weights[1 + index] != 0 for weights in (self.weights, self.anchor) if weights)


@dataclass(frozen=True)
class Schedule:
    """Constants of a sampler.

    Attributes:
        name: of the sampler, for people.
        steps: in the order in which they run.
        noise_axes: noise is drawn for the latent axes [B, C, T, H, W] in this order and
            permuted back, as the reference draws it.
        guidance: scale of classifier-free guidance; 1 is none, and one forward a step.
    """

    name: str
    steps: tuple[Step, ...]
    noise_axes: Axes = (0, 1, 2, 3, 4)
    guidance: float = 1.0

    @property
    def prompts(self) -> int:
        """Prompts that a video reads: its own, and a negative one where there is guidance."""
        return 1 if self.guidance == 1 else 2

    @property
    def forwards(self) -> int:
        """Runs of the transformer in a video."""
        return self.prompts * len(self.steps)

    @property
    def noises(self) -> int:
        """Tensors of fresh noise that the loop consumes, beside the initial latents."""
        return sum(step.noise != 0 for step in self.steps)

    def last_use(self, index: int) -> int:
        """Last step that reads the prediction of step `index`: that one, where no later does."""
        later = range(index + 1, len(self.steps))
        return max((k for k in later if self.steps[k].reads(index)), default=index)


def shifted(sigma: npt.NDArray[np.floating], shift: float) -> npt.NDArray[np.floating]:
    """Flow-matching time shift: s*sigma / (1 + (s-1)*sigma) (Esser et al. 2024, eq. 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)
