"""Stand-ins for a bundle's engines: the same inputs, outputs and streams, computed by torch."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastwan.bundle import Bundle
from fastwan.dtypes import PAIRED
from fastwan.errors import BadInput, first_line
from fastwan.manifest import Engine
from fastwan.onnx_guard import BundleGraph, bundle_graph, checked_model
from fastwan.runtime.emulated.fp4 import Operand, pairs
from fastwan.runtime.emulated.graph import SHARED, TorchGraph
from fastwan.runtime.recording.machine import Binding, DeviceError

_TORCH: dict[str, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float4_e2m1fn": torch.uint8,
    "uint8": torch.uint8,
    "int32": torch.int32,
    "int64": torch.int64,
}
"""By numpy's name; what engines take two a byte are the bytes."""


class Torch:
    """Where torch computes, and the memory of its own that it does it in.

    Args:
        device: the GPU of the session, or the CPU for tests.

    On a GPU what lies between an engine's inputs and outputs is taken from a pool of this object:
    the first run of an engine fills it, later ones find their sizes in it. So a captured graph
    allocates nothing, and nothing else is ever put where it writes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool: Any = None
        pairs(torch.empty(0, device=device).device)
        if device.type == "cuda":
            self._pool = torch.cuda.MemPool()
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.deterministic = True
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False

    def on(self, stream: int) -> AbstractContextManager[Any]:
        """Work goes to a stream of CUDA, 0 its default one, and memory comes from the pool."""
        if self._pool is None:
            return nullcontext()
        return _OnStream(self._pool, stream)

    def tensor(self, address: int, shape: tuple[int, ...], dtype: str) -> Tensor:
        """A tensor over memory of the session; of a format that lies two a byte, the bytes."""
        if dtype in PAIRED:
            shape = (*shape[:-1], shape[-1] // 2)
        size = int(np.prod(shape)) * _TORCH[dtype].itemsize
        if self.device.type == "cuda":
            flat = torch.as_tensor(_Memory(address, size), device=self.device)
        else:
            raw = (ctypes.c_uint8 * size).from_address(address)
            flat = torch.frombuffer(raw, dtype=torch.uint8)
        return flat.view(_TORCH[dtype]).view(shape)


class _Memory:
    """Bytes of device memory, as torch takes them without a copy."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {
            "data": (address, False), "shape": (size,), "typestr": "|u1", "version": 3,
        }  # fmt: skip


class _OnStream(AbstractContextManager[None]):
    def __init__(self, pool: Any, stream: int) -> None:
        self._inside = (
            torch.cuda.stream(torch.cuda.ExternalStream(stream)),
            torch.cuda.use_mem_pool(pool),
            torch.inference_mode(),
        )

    def __enter__(self) -> None:
        for each in self._inside:
            each.__enter__()

    def __exit__(self, *error: Any) -> None:
        for each in reversed(self._inside):
            each.__exit__(*error)


class TorchEngine:
    """One engine of a bundle, computed by torch from the exported graph.

    Args:
        record: what the manifest says of it.
    """

    def __init__(self, where: Torch, name: str, record: Engine, graph: TorchGraph) -> None:
        self._torch = where
        self._name = name
        self._dtypes = {spec.name: spec.dtype for spec in record.tensors}
        self._inputs = [spec.name for spec in (*record.inputs, *record.constants)]
        self._outputs = [spec.name for spec in record.outputs]
        self._graph = graph
        self._tensors: dict[tuple[str, Binding], Tensor] = {}
        self.scratch_bytes = record.scratch_bytes

    def enqueue(
        self,
        bindings: Mapping[str, Binding],
        scratch: int,
        scratch_bytes: int,
        stream: int,
        profile: int = 0,
    ) -> None:
        try:
            bound = {name: self._tensor(name, binding) for name, binding in bindings.items()}
            with self._torch.on(stream):
                self._graph.run(
                    {name: bound[name] for name in self._inputs if not name.endswith(SHARED)},
                    {name: bound[name] for name in self._outputs},
                )
        except torch.OutOfMemoryError as error:
            raise DeviceError(f"{self._name}: {first_line(error)}", "memory") from error
        except RuntimeError as error:
            kind = "capture" if "captur" in str(error) else "call"
            raise DeviceError(f"{self._name}: {first_line(error)}", kind) from error

    @property
    def operands(self) -> dict[str, Operand]:
        """See `TorchGraph.operands`."""
        return self._graph.operands

    def _tensor(self, name: str, binding: Binding) -> Tensor:
        key = (name, binding)
        if key not in self._tensors:
            self._tensors[key] = self._torch.tensor(*binding, self._dtypes[name])
        return self._tensors[key]


def open_emulated(bundle: Bundle, device: torch.device) -> dict[str, TorchEngine]:
    """Every engine of a bundle, from the graphs that it was built from.

    Raises:
        BadInput: a graph holds what is not emulated, or see `fastwan.onnx_guard.bundle_graph`.
        VerificationFailed: a file differs from its hash.
    """
    where = Torch(device)
    manifest = bundle.manifest
    graphs: dict[str, BundleGraph] = {}
    engines = {}
    for name, record in manifest.engines.items():
        component = record.component
        if component not in graphs:
            graph = manifest.onnx.graphs.get(component)
            if graph is None:
                raise BadInput(f"bundle has no graph of its {component}", where=str(bundle.root))
            graphs[component] = bundle_graph(bundle, graph.file, graph.data)
        engines[name] = _engine(where, name, record, graphs[component])
    return engines


def open_emulated_fallbacks(bundle: Bundle, device: torch.device) -> dict[str, TorchEngine]:
    """Every engine that can be played in place of nodes between engines, from its own graph.

    Raises:
        BadInput: a graph holds what is not emulated, or see `fastwan.onnx_guard.checked_model`.
        VerificationFailed: a file differs from its hash.
    """
    where = Torch(device)
    engines = {}
    for name, fallback in bundle.manifest.fallbacks.items():
        content = bundle.read(fallback.graph)
        model = checked_model(content, bundle.folder, fallback.graph, listed=())
        graph = BundleGraph(model, content, bundle.folder, fallback.graph)
        engines[name] = _engine(where, name, fallback.engine, graph)
    return engines


def _engine(where: Torch, name: str, record: Engine, graph: BundleGraph) -> TorchEngine:
    inputs = [spec.name for spec in record.inputs]
    outputs = [spec.name for spec in record.outputs]
    weights = [spec.name for spec in record.constants]
    with where.on(0):
        computed = TorchGraph(graph, inputs, outputs, where.device, weights)
    return TorchEngine(where, name, record, computed)
