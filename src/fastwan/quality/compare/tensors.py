"""Tensors of two bundles through Polygraphy: its runners, its comparator, its files."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from polygraphy.backend.base import BaseRunner
from polygraphy.common import TensorMetadata
from polygraphy.comparator import Comparator, RunResults
from polygraphy.logger import G_LOGGER

from fastwan.outputs import OutputFolder
from fastwan.quality.verify.graphs import relative_difference
from fastwan.runtime.model.executor import Array

Infer = Callable[[Array, int], Mapping[str, Array]]
"""(latents, timestep) -> tensors by name."""


class BundleRunner(BaseRunner):  # type: ignore[misc]
    """A bundle as a runner of Polygraphy.

    Args:
        infer: computes the tensors.
        name: of the runner, in files and messages.
        shape: of the latents.
    """

    def __init__(self, infer: Infer, name: str, shape: tuple[int, ...]) -> None:
        super().__init__(name=name)
        self._infer, self._shape = infer, shape

    def get_input_metadata_impl(self) -> Any:
        metadata = TensorMetadata().add("latents", np.dtype(np.float32), self._shape)
        return metadata.add("timestep", np.dtype(np.int64), (1,))

    def infer_impl(self, feed_dict: Mapping[str, Array]) -> OrderedDict[str, Array]:
        self.inference_time = 0.0
        return OrderedDict(self._infer(feed_dict["latents"], int(feed_dict["timestep"][0])))


@dataclass(frozen=True)
class TensorResult:
    """A tensor of both bundles; true where it is within the limit.

    Attributes:
        difference: relative L2, infinite where it means nothing.
        largest: difference of an element.
    """

    difference: float
    largest: float
    limit: float

    def __bool__(self) -> bool:
        return self.difference <= self.limit


def run_both(
    infers: Sequence[Infer], names: Sequence[str], latents: Array, timestep: int
) -> RunResults:
    """Tensors of two bundles for the same latents.

    Args:
        names: of the runners; different ones.
    """
    runners = [
        BundleRunner(infer, name, latents.shape) for infer, name in zip(infers, names, strict=True)
    ]
    feed = {"latents": latents, "timestep": np.array([timestep], np.int64)}
    with _quiet():
        return Comparator.run(runners, data_loader=[feed])


def compare_results(results: RunResults, limit: float) -> dict[str, TensorResult]:
    """Each tensor of the first runner against the second's of the same name."""

    def compared(left: Mapping[str, Any], right: Mapping[str, Any]) -> OrderedDict[str, Any]:
        common = [name for name in left if name in right]
        return OrderedDict((name, _compare(left[name], right[name], limit)) for name in common)

    with _quiet():
        accuracy = Comparator.compare_accuracy(results, compare_func=compared)
    (by_pair,) = accuracy
    ((result,),) = by_pair.values()
    return dict(result)


def _compare(a: Array, b: Array, limit: float) -> TensorResult:
    largest = float(np.abs(a.astype(np.float64) - b).max()) if a.shape == b.shape else np.inf
    return TensorResult(relative_difference(a, b), largest, limit)


def save_results(results: RunResults, place: OutputFolder) -> None:
    """Write ``a.json`` and ``b.json``, which `polygraphy run --load-outputs` compares."""
    with place.make() as folder:
        _write(results, folder)


def _write(results: RunResults, folder: Path) -> None:
    for file, (name, iterations) in zip(("a.json", "b.json"), results, strict=True):
        with _quiet():
            RunResults([(name, iterations)]).save(str(folder / file))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Polygraphy's log out of a command's output."""
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        yield
