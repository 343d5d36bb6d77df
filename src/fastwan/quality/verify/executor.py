"""Lowered graphs of a bundle on ONNX Runtime without a file of their own."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import onnx_ir as ir

from fastwan.export.attentions import EXACT, Attention
from fastwan.export.onnx_io import strip
from fastwan.export.passes.graphs import clone
from fastwan.export.passes.lower_attention import lower_attention
from fastwan.export.passes.lower_for_onnxruntime import lower_for_onnxruntime
from fastwan.export.passes.split_dit import split_dit
from fastwan.onnx_guard import all_tensors
from fastwan.runtime.cpu.executor import OnnxRuntimeExecutor
from fastwan.runtime.model.dit import DIT_GRAPHS, DiT
from fastwan.runtime.model.executor import Array


class MemoryExecutor(OnnxRuntimeExecutor):
    """ONNX Runtime on a model in memory, its large weights in the data files of a folder.

    Constants are not folded: that would unpack every FP4 weight to fp32 at once.

    Args:
        model: of standard operators; the locations of its external data are absolute.
        folder: where the external data lies.
        threads: see `OnnxRuntimeExecutor`.

    Raises:
        BadInput: ONNX Runtime cannot load the graph.
    """

    def __init__(self, model: ir.Model, folder: Path, *, threads: int = 1) -> None:
        strip(model)
        proto = ir.to_proto(model)
        for tensor in all_tensors(proto):
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = Path(entry.value).relative_to(folder).as_posix()
        super().__init__(
            proto.SerializeToString(),
            name=str(model.graph.name),
            folder=folder,
            fold_constants=False,
            threads=threads,
        )


class LoweredDiT:
    """The transformer's graph lowered in several ways.

    Args:
        model: as ``dit.onnx`` holds it; left unchanged.
        folder: where its external data lies.
        attention: what the model was made for.
    """

    def __init__(self, model: ir.Model, folder: Path, attention: Attention) -> None:
        self._model, self._folder, self._attention = model, folder, attention
        self._exact: dict[str, ir.Model] = {}

    @cached_property
    def parts(self) -> dict[str, ir.Model]:
        """The graphs of `split_dit` with the numerics of the model."""
        parts = {name: clone(part) for name, part in split_dit(self._model).items()}
        return {
            name: lower_for_onnxruntime(part, attention=self._attention.reference)[0]
            for name, part in parts.items()
        }

    def executors(self, parts: dict[str, ir.Model]) -> DiT[Array]:
        """The runtime's component over lowered graphs."""
        return DiT(*(MemoryExecutor(parts[name], self._folder) for name in DIT_GRAPHS))

    def unquantised(self, *, rounding: bool) -> DiT[Array]:
        """Without activation quantisers and with exact attention, in bf16 or without rounding."""
        if not self._exact:
            for name, part in split_dit(self._model).items():
                self._exact[name] = lower_attention(clone(part), EXACT)[0]
        lowered = {
            name: lower_for_onnxruntime(clone(part), quantize_activations=False, rounding=rounding)[
                0
            ]
            for name, part in self._exact.items()
        }
        return self.executors(lowered)
