"""Weights that regions and engines are given, taken from the transformer's ONNX file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from fastwan.bundle import Bundle
from fastwan.errors import BadInput, VerificationFailed
from fastwan.runtime.model.checks import FLOATS, is_finite


def initializers(bundle: Bundle, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Names and raw bytes of initializers of ``dit.onnx``, little endian and row-major.

    Only these are read, one at a time, in the order of `names`.

    Raises:
        BadInput: one is missing, or see `fastwan.onnx_guard.bundle_graph`.
        VerificationFailed: a file differs from its hash, or a float is NaN or Inf.
    """
    if not names:
        return
    from onnx.helper import tensor_dtype_to_np_dtype

    from fastwan.onnx_guard import bundle_graph

    record = bundle.manifest.onnx.graphs.get("dit")
    if record is None:
        raise BadInput("bundle has no ONNX file of the transformer", where=str(bundle.root))
    graph = bundle_graph(bundle, record.file, record.data)
    stored = {tensor.name: tensor for tensor in graph.model.graph.initializer}
    for name in names:
        if name not in stored:
            raise BadInput(f"{record.file} has no initializer {name!r}", where=str(bundle.root))
    for name in names:
        content = graph.content(stored[name])
        dtype = tensor_dtype_to_np_dtype(stored[name].data_type)
        if dtype.name in FLOATS and not is_finite(np.frombuffer(content, dtype)):
            raise VerificationFailed(
                f"{name} holds NaN or Inf",
                where=record.file,
                fix="its checkpoint is broken: build the bundle again from another one",
            )
        yield name, content
