"""Kinds of samplers: how a `SamplerSpec` becomes the numbers of a schedule. A row a kind."""

from __future__ import annotations

from collections.abc import Callable

from fastwan.config import SamplerSpec
from fastwan.runtime.model.samplers import dmd, unipc
from fastwan.runtime.model.schedule import Schedule
from fastwan.tables import lookup

KINDS: dict[str, Callable[[SamplerSpec], Schedule]] = {
    "unipc": unipc.schedule,
    "dmd": dmd.schedule,
}


def schedule_of(spec: SamplerSpec) -> Schedule:
    """The schedule that a sampler of a manifest plays.

    Raises:
        BadInput: no such kind.
    """
    return lookup(KINDS, spec.kind)(spec)
