"""`sampler`: the constants of the denoise loop against the published sequences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fastwan.config import SAMPLERS, SamplerSpec
from fastwan.errors import BadInput
from fastwan.quality.verify.report import Check
from fastwan.quality.verify.subject import Subject
from fastwan.runtime.model.executor import Array
from fastwan.runtime.model.loop import denoise
from fastwan.runtime.model.samplers import schedule_of
from fastwan.runtime.model.schedule import Schedule

LIMIT = 1e-6
"""The published constants have seven digits."""


class _Row(NamedTuple):
    timestep: int
    sigma: float
    initial: float
    history: tuple[float, ...]
    prediction: float
    noise: float


# FastVideo's run of UniPC: x1 = a x0 + b m0, x1c = a x0 + (m0 + m1) b / 2,
# x2 = c x1c + d m1 - e m0, result m2.
_A, _B, _C, _D, _E = 0.8571156, 0.1428844, 0.6999600, 0.3284683, 0.0284282
PUBLISHED: dict[str, tuple[_Row, ...]] = {
    "unipc": (
        _Row(999, 0.99988877, _A, (), _B, 0.0),
        _Row(857, 0.85702028, _C * _A, (_C * _B / 2 - _E,), _C * _B / 2 + _D, 0.0),
        _Row(599, 0.59987989, 0.0, (0.0, 0.0), 1.0, 0.0),
    ),
    "dmd": (
        _Row(1000, 1.0, 0.0, (), 1 - 0.7567567, 0.7567567),
        _Row(757, 0.7567567, 0.0, (0.0,), 1 - 0.5217391, 0.5217391),
        _Row(522, 0.5217391, 0.0, (0.0, 0.0), 1.0, 0.0),
    ),
}


class _Whole(NamedTuple):
    """A sampler of many steps: its timesteps, and what all of its constants come to.

    Attributes:
        weights: of the initial latents and of each step's velocity in the clean latents.
    """

    timesteps: tuple[int, ...]
    weights: tuple[float, ...]


# diffusers 0.42.1, UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True,
# flow_shift=3.0), set_timesteps(50), its fp32 levels in fp64, one-hot latents and velocities.
PUBLISHED_WHOLE: dict[str, _Whole] = {
    "unipc-50": _Whole(
        (
            999, 993, 986, 979, 971, 964, 956, 948, 940, 931, 923, 914, 904, 895, 885, 875, 864,
            853, 842, 830, 818, 805, 792, 779, 765, 750, 735, 719, 702, 685, 667, 648, 628, 607,
            586, 563, 539, 514, 487, 459, 429, 398, 365, 329, 292, 251, 208, 162, 113, 60,
        ),
        (
            1.000000000, -0.003397982, -0.006254995, -0.007430658, -0.007290405, -0.007457204,
            -0.007657712, -0.007874896, -0.008104756, -0.008346340, -0.008599786, -0.008865418,
            -0.009143719, -0.009435572, -0.009741796, -0.010063111, -0.010400767, -0.010755599,
            -0.011129107, -0.011522229, -0.011936732, -0.012373863, -0.012835529, -0.013323524,
            -0.013839796, -0.014386650, -0.014966518, -0.015582070, -0.016236434, -0.016932623,
            -0.017674542, -0.018466070, -0.019311677, -0.020216386, -0.021185613, -0.022225500,
            -0.023342823, -0.024544841, -0.025839596, -0.027235670, -0.028741983, -0.030362721,
            -0.032085736, -0.033965075, -0.036387290, -0.038802410, -0.035186118, -0.025055304,
            -0.048052440, -0.105026010, -0.060405388,
        ),
    ),
}  # fmt: skip


def check_sampler(subject: Subject) -> Check:
    """Largest difference between the schedules that the bundle can play and the published ones.

    Every sampler of the manifest is held, not the default one alone: each can be asked for. One
    without published constants has failed. Of a checkpoint with a scheduler of its own, the
    sampler is what the export recorded of it, and the code that derives its constants is held
    against the published ones.
    """
    model = subject.manifest.onnx.model
    owns = {model.default_sampler: model.own_sampler} if model.own_sampler else {}
    differences = {
        spec.name: difference(spec, owns.get(spec.name)) for spec in subject.manifest.samplers
    }
    told = ", ".join(
        f"{spec.name}, {spec.steps} steps, {_published_steps(spec.name)} of them published"
        + (f", the checkpoint's own shift {spec.shift:g}" if spec.name in owns else "")
        + ("" if differences[spec.name] <= LIMIT else ": differs")
        for spec in subject.manifest.samplers
    )
    return Check(
        name="sampler",
        metric="largest difference to the published constants",
        value=max(differences.values(), default=None),
        limit=LIMIT,
        note=told,
    )


def difference(spec: SamplerSpec, own: SamplerSpec | None = None) -> float:
    """Largest difference of a sampler's constants to the published ones; infinite without those.

    Args:
        own: what the export recorded of the checkpoint's scheduler; `spec` must be the same.
    """
    published = PUBLISHED.get(spec.name, ())
    row = SAMPLERS.get(spec.name)
    if row is None or (own is not None and spec != own) or spec.guidance != row.guidance:
        return math.inf
    spec = spec if own is None else row
    try:
        schedule = schedule_of(spec)
    except BadInput:
        return math.inf
    if spec.name in PUBLISHED_WHOLE:
        return _whole_difference(schedule, PUBLISHED_WHOLE[spec.name])
    steps = schedule.steps
    if not published or len(steps) != len(published):
        return math.inf
    largest = 0.0
    for step, known in zip(steps, published, strict=True):
        alike = step.timestep == known.timestep and len(step.history) == len(known.history)
        if not alike or step.anchor:
            return math.inf
        pairs = (
            (step.sigma, known.sigma),
            (step.initial, known.initial),
            (step.prediction, known.prediction),
            (step.noise, known.noise),
            *zip(step.history, known.history, strict=True),
        )
        differences = [abs(a - b) for a, b in pairs]
        if not all(map(math.isfinite, differences)):
            return math.inf
        largest = max(largest, *differences)
    return largest


def _whole_difference(schedule: Schedule, published: _Whole) -> float:
    """Largest difference in the clean latents' weights, by a loop over one-hot tensors."""
    if tuple(step.timestep for step in schedule.steps) != published.timesteps or schedule.noises:
        return math.inf
    hot = np.eye(len(published.weights))
    velocities = iter(hot[1:])

    def exact(terms: Sequence[tuple[float, Array]]) -> Array:
        return np.asarray(sum(weight * tensor for weight, tensor in terms))

    clean = denoise(lambda _latents, _timestep: next(velocities), hot[0], schedule, combine=exact)
    largest = float(np.abs(clean - published.weights).max())
    return largest if math.isfinite(largest) else math.inf


def _published_steps(name: str) -> int:
    known = PUBLISHED_WHOLE.get(name)
    return len(PUBLISHED.get(name, ()) if known is None else known.timesteps)
