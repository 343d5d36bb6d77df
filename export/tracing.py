"""Tracing a module to a plain ONNX graph, through torch.onnx's exporter."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch

from fastwan.errors import BadInput
from fastwan.export.onnx_io import OPSET, strip


def trace(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    *,
    name: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic_shapes: tuple[Any, ...] | None = None,
    translations: dict[Callable[..., Any], Callable[..., Any]] | None = None,
) -> ir.Model:
    """Export a module through torch.onnx's dynamo exporter and clean the graph.

    The module and `args` may be fake (made under one ``FakeTensorMode``); its parameters and
    buffers then become initializers without a value, to be joined to data by their names.

    Args:
        module: in eval mode.
        args: example inputs; their shapes are the graph's, save for `dynamic_shapes`.
        name: name of the graph.
        inputs: names of the graph inputs.
        outputs: names of the graph outputs.
        dynamic_shapes: as for ``torch.export.export``.
        translations: ONNX functions for custom operators, as torch.onnx takes them.
    """
    from torch._subclasses.fake_tensor import FakeTensor

    with _quiet_exporter():
        program = torch.onnx.export(
            module,
            args,
            dynamo=True,
            optimize=False,
            opset_version=OPSET,
            verbose=False,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=dynamic_shapes,
            custom_translation_table=translations,
        )
    if program is None:
        raise BadInput("torch.onnx.export returned nothing", where=name)
    for value in program.model.graph.initializers.values():
        # A fake value would be read by the passes; without one it is an unknown.
        if isinstance(getattr(value.const_value, "raw", None), FakeTensor):
            value.const_value = None
    return clean_model(program.model, name=name)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter's notes on optional packages and deprecations off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def clean_model(model: ir.Model, *, name: str) -> ir.Model:
    """Turn a freshly exported model into a plain one, in place, and return it.

    Requires: initializers that have no value yet (fake tensors) have ``const_value`` None.
    Ensures: functions inlined, shape arithmetic folded, constants lifted to initializers,
    Identity and dead nodes removed, no trace of the exporter.

    Args:
        model: ``torch.onnx.export(..., dynamo=True, optimize=False).model``.
        name: name of the graph.
    """
    from onnx_ir.passes import common
    from onnxscript.optimizer._constant_folding import FoldConstantsPass

    passes = ir.passes.Sequential(
        common.InlinePass(),
        FoldConstantsPass(
            shape_inference=True, input_size_limit=1 << 20, output_size_limit=1 << 20
        ),
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common.RemoveUnusedOpsetsPass(),
    )
    passes(model)
    strip(model)
    model.graph.name = name
    return model
