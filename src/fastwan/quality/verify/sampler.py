"""`sampler`: the constants of the denoise loop against the published sequences."""

from __future__ import annotations

import math
from typing import NamedTuple

from fastwan.config import SAMPLERS, SamplerSpec
from fastwan.errors import BadInput
from fastwan.quality.verify.report import Check
from fastwan.quality.verify.subject import Subject
from fastwan.runtime.model.samplers import schedule_of

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
        f"{spec.name}, {spec.steps} steps, {len(PUBLISHED.get(spec.name, ()))} of them published"
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
    if own is not None:
        if spec != own or spec.name not in SAMPLERS:
            return math.inf
        spec = SAMPLERS[spec.name]
    try:
        steps = schedule_of(spec).steps
    except BadInput:
        return math.inf
    if not published or len(steps) != len(published):
        return math.inf
    largest = 0.0
    for step, row in zip(steps, published, strict=True):
        if step.timestep != row.timestep or len(step.history) != len(row.history):
            return math.inf
        pairs = (
            (step.sigma, row.sigma),
            (step.initial, row.initial),
            (step.prediction, row.prediction),
            (step.noise, row.noise),
            *zip(step.history, row.history, strict=True),
        )
        differences = [abs(a - b) for a, b in pairs]
        if not all(map(math.isfinite, differences)):
            return math.inf
        largest = max(largest, *differences)
    return largest
