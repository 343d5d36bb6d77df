"""Let the quantiser of an activation read a graph's input once."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from fastwan.export.passes.graphs import constant, insert_before

_READERS = {"Abs", "Div"}


def read_once(model: ir.Model) -> tuple[ir.Model, bool]:
    """Multiply each input that a computed scale is made of by ones, in front of the quantiser.

    The maximum of a row and the division by its scale are one kernel, which keeps a row that it
    computed and reads one that it was given twice: 101 MB more for 32,768 x 1536.

    Requires: an activation is quantised as `expand_fp8` writes it.
    Ensures: the same values.

    Args:
        model: changed in place.
    """
    changed = False
    for value in list(model.graph.inputs):
        if {use.node.op_type for use in value.uses()} != _READERS:
            continue
        assert value.shape is not None
        width = value.shape[-1]
        assert isinstance(width, int)
        kind = ml_dtypes.bfloat16 if value.dtype == ir.DataType.BFLOAT16 else np.float32
        name = f"{value.name}/once"
        ones = constant(model.graph, f"{name}/ones", ir.tensor(np.ones(width, kind)))
        node = ir.node("Mul", [value, ones], name=name)
        own = node.outputs[0]
        own.name, own.type, own.shape = f"{name}/out", value.type, value.shape
        first = next(node for node in model.graph if value in node.inputs)
        for use in list(value.uses()):
            if use.node is not node:
                use.node.replace_input_with(use.idx, own)
        insert_before(first, [node])
        changed = True
    return model, changed
