"""Executors: what runs one graph, behind one protocol that components are written against.

Components (`dit`, `text` and `decode` of this folder) know names of inputs and outputs, never what
a tensor is, so a component object is the same over ONNX Runtime on arrays and over an engine on
device buffers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import numpy.typing as npt

from fastwan.errors import BadInput
from fastwan.manifest import TensorSpec

A = TypeVar("A")
Array = npt.NDArray[Any]


class Executor(Protocol[A]):
    """One graph, ready to run.

    `run` enqueues: on a device the results are complete in the order of the executor's stream,
    and a captured graph replays exactly the calls it recorded. Buffers passed by the caller are
    used in place, so that ping-pong state and a shared arena are the caller's decision.
    """

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """Inputs by name; dtypes are numpy names, ``bfloat16`` included."""

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """Outputs by name."""

    def full(self, name: str, value: float = 0.0) -> A:
        """A new buffer like input or output `name`, which must have a fixed shape."""

    def run(self, inputs: Mapping[str, A], outputs: Mapping[str, A] | None = None) -> dict[str, A]:
        """Run once.

        Args:
            inputs: every input by name.
            outputs: buffers to write results to; they must not overlap the inputs. Results
                without one get a new buffer.

        Returns:
            Every output by name.
        """


def fixed_shape(spec: TensorSpec) -> tuple[int, ...]:
    """Shape of a tensor without dynamic axes.

    Raises:
        BadInput: an axis is dynamic.
    """
    shape = tuple(size for size in spec.shape if isinstance(size, int))
    if len(shape) != len(spec.shape) or math.prod(shape) < 1:
        raise BadInput(f"{spec.name} has no fixed shape: {list(spec.shape)}", where="bundle")
    return shape


def require_names(executor: Executor[Any], graph: str, inputs: set[str], outputs: set[str]) -> None:
    """Check that a graph has the named inputs and outputs.

    Raises:
        BadInput: one is missing; the message names it.
    """
    missing = sorted(inputs - executor.inputs.keys()) + sorted(outputs - executor.outputs.keys())
    if missing:
        raise BadInput(
            f"graph lacks {', '.join(missing)}",
            where=graph,
            fix="the bundle was made by another version; build it again",
        )
