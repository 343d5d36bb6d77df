"""Tracing less: what torch.onnx and the exporter make again and again, kept for a session."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch.onnx._internal.exporter import _registration

from fastwan.export import dit_graph
from fastwan.export.passes import lower_attention


@contextmanager
def quick_traces() -> Iterator[None]:
    """Trace with tables that are kept, and each stage and form of attention of one shape once.

    That a process without this makes the same bytes is a test of ``dit.onnx``.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_registration.ONNXRegistry, "from_torchlib", staticmethod(_kept_registry()))
        patch.setattr(lower_attention, "_trace", _kept_attention())
        patch.setattr(dit_graph, "_Stages", functools.cache(dit_graph._Stages))
        yield


def _kept_registry() -> Callable[..., Any]:
    """Every export makes a table of all operators, half of the time of a small module's trace."""
    build = functools.cache(_registration.ONNXRegistry.from_torchlib)

    def from_torchlib(*arguments: Any, **named: Any) -> Any:
        registry = copy.copy(build(*arguments, **named))
        # An export adds its own operators.
        registry.functions = {name: list(each) for name, each in registry.functions.items()}
        return registry

    return from_torchlib


def _kept_attention() -> Callable[..., Any]:
    trace, known = lower_attention._trace, dict[object, Any]()

    def kept(form: Any, attributes: dict[str, Any], types: Any) -> Any:
        key = (form, repr(sorted(attributes.items())), types)
        if key not in known:
            known[key] = trace(form, attributes, types)
        return known[key]

    return kept
