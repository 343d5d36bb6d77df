"""Distribution matching distillation: predict x0, add fresh noise at the next level, repeat."""

from __future__ import annotations

import numpy as np

from fastwan.config import SamplerSpec
from fastwan.runtime.model.schedule import TRAIN_TIMESTEPS, Schedule, Step, shifted


def schedule(spec: SamplerSpec) -> Schedule:
    """Constants of the steps at ``spec.timesteps``.

    A timestep's sigma is the entry of the shifted fp32 training table whose own timestep is the
    nearest. The noise is drawn frames before channels, as the reference's DMD pipeline does.
    """
    table = shifted(
        np.arange(TRAIN_TIMESTEPS, 0, -1, dtype=np.float32) / TRAIN_TIMESTEPS, spec.shift
    ).astype(np.float32)
    sigmas = [float(table[np.abs(table * TRAIN_TIMESTEPS - t).argmin()]) for t in spec.timesteps]
    following = [*sigmas[1:], 0.0]
    levels = zip(spec.timesteps, sigmas, following, strict=True)
    steps = tuple(
        Step(
            timestep=timestep,
            sigma=sigma,
            initial=0.0,
            history=(0.0,) * k,
            prediction=1.0 - after,
            noise=after,
        )
        for k, (timestep, sigma, after) in enumerate(levels)
    )
    return Schedule(spec.name, steps, noise_axes=(0, 2, 1, 3, 4), guidance=spec.guidance)
