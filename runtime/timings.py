"""Measured seconds by stage."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class _End:
    """Behind the last item."""


_END = _End()


def nearest_rank(values: Iterable[float], percent: int) -> float:
    """A percentile of some values: the smallest that at least `percent` % of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-percent * len(ordered) // 100) - 1)]


class Timings(dict[str, float]):
    """Measured wall-clock seconds by stage.

    ``load`` (opening components and computing the schedule's tables, near 0 from the second call
    on), ``text``, ``noise`` (drawing it), ``text_kv``, ``step_0`` .., ``decode`` and, where files
    are written, ``write`` and ``total``, the whole video. ``first_frame`` is the time from the
    beginning until the first frame is on the host, the stages before it included.
    """

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time of a `with` body to `stage`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self[stage] = self.get(stage, 0.0) + time.perf_counter() - begin

    def add(self, other: Mapping[str, float]) -> None:
        """Add the times of another video, stage by stage."""
        for stage, seconds in other.items():
            self[stage] = self.get(stage, 0.0) + seconds

    def measured(self, stage: str, items: Iterator[T]) -> Iterator[T]:
        """`items`, with the time of each `next` added to `stage`."""
        while True:
            with self.measure(stage):
                item = next(items, _END)
            if isinstance(item, _End):
                return
            yield item
