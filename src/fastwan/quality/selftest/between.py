"""Stage: the kernels between two GEMMs of the bundle, each against its reference."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastwan.errors import EnvironmentLacks
from fastwan.plugins.regions.base import dims
from fastwan.plugins.regions.glue import GlueOp
from fastwan.quality.region_figures import difference
from fastwan.quality.selftest.context import Context, Outcome, Skip, StageFailure
from fastwan.quality.selftest.glue import glue_inputs, glue_outputs
from fastwan.quality.selftest.memory import Scratch, to_numpy, to_torch
from fastwan.quality.selftest.regions import compile_for_host
from fastwan.quality.selftest.report import Figure
from fastwan.runtime.recording.operations import LaunchRegion
from fastwan.schema import Label

Launch = Callable[[GlueOp, Sequence[Tensor]], list[Tensor]]
"""Run a node on inputs that lie on the CPU; its outputs, likewise."""

_ROWS, _HOST_ROWS = 4096, 17
"""Most rows that are compared where torch has no GPU, and of device code on a CPU."""


def glue(context: Context) -> Outcome:
    """Each kind of node at the bundle's width, as the runtime launches it."""

    def launch(op: GlueOp, inputs: Sequence[Tensor]) -> list[Tensor]:
        with Scratch(context.device) as scratch:
            given = [scratch.put(to_numpy(each)) for each in inputs]
            garbage = glue_outputs(op)
            out = [scratch.put(to_numpy(each)) for each in garbage]
            context.platform.kernels.region(op, given, out, 0, 0, scratch.stream)
            return [
                to_torch(scratch.get(address, dims(spec), spec.dtype))
                for address, spec in zip(out, op.outputs, strict=True)
            ]

    label: Label = "emulated" if context.machine.kind == "emulated" else "measured"
    return _compared(_nodes(context, None if torch.cuda.is_available() else _ROWS), launch, label)


def glue_on_host(context: Context) -> Outcome:
    """The same device code compiled for the processor here, on a few rows."""
    nodes = _nodes(context, _HOST_ROWS)
    with tempfile.TemporaryDirectory(prefix="fastwan-selftest-") as folder:
        try:
            emulation = compile_for_host(Path(folder), "emulate_glue.cpp")
        except EnvironmentLacks as error:
            raise Skip(error.what) from error

        def launch(op: GlueOp, inputs: Sequence[Tensor]) -> list[Tensor]:
            outputs, desc = glue_outputs(op), op.desc()
            emulation.fastwan_emulate_glue(
                ctypes.byref(desc), _pointers(inputs), _pointers(outputs)
            )
            return outputs

        return _compared(nodes, launch, "emulated")


def _nodes(context: Context, most: int | None) -> list[GlueOp]:
    """The different nodes of a video of the bundle, with at most so many rows.

    Raises:
        Skip: the bundle has none.
    """
    operations = (o for stage in context.recording.stages for o in stage.operations)
    regions = (each.region for each in operations if isinstance(each, LaunchRegion))
    kinds: dict[Any, GlueOp] = {each: each for each in regions if isinstance(each, GlueOp)}
    nodes = [replace(node, rows=min(op.rows, most or op.rows)) for node, op in kinds.items()]
    if not nodes:
        raise Skip("the bundle launches nothing but attention between its engines")
    return nodes


def _compared(nodes: Sequence[GlueOp], launch: Launch, label: Label) -> Outcome:
    """Hold nodes to their references.

    Raises:
        StageFailure: one differs by more than its limit.
    """
    on, figures = "cuda" if torch.cuda.is_available() else "cpu", []
    for op in nodes:
        inputs = glue_inputs(op)
        expected = [each.cpu() for each in op.reference(*(each.to(on) for each in inputs))]
        value = difference(op, launch(op, inputs), expected)
        metric = "relative L2" if op.limit else "bytes that differ"
        figures.append(
            Figure(name=f"{metric}, {op}", value=float(value), limit=op.limit, label=label)
        )
        if not value <= op.limit:
            raise StageFailure(
                f"{op}: {metric} from the reference: {value:.3g}, more than {op.limit:g}",
                tuple(figures),
            )
    return Outcome(f"{len(nodes)} kernels write what their references do", tuple(figures))


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(each.data_ptr() for each in tensors))
