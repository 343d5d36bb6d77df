"""ONNX Runtime on the CPU: the reference executor, and how its graphs are checked before use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from fastwan.bundle import Bundle
from fastwan.errors import BadInput, first_line
from fastwan.manifest import TensorSpec
from fastwan.runtime.model.executor import Array

if TYPE_CHECKING:
    import onnx

BFLOAT16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
_FLOATS = (np.dtype(np.float16), BFLOAT16, np.dtype(np.float32), np.dtype(np.float64))
_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(bfloat16)": BFLOAT16,
    "tensor(double)": np.dtype(np.float64),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(uint8)": np.dtype(np.uint8),
}
_ONNX_BFLOAT16 = 16
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"


class OnnxRuntimeExecutor:
    """An ONNX graph of standard operators on the CPU, over numpy arrays.

    Floating-point inputs are converted to the dtype the graph declares (round to nearest even);
    everything else must match exactly.

    Args:
        model: a ``.onnx`` file, or what one holds; checked (`cpu_executor` checks it).
        name: for errors; the file's where None.
        folder: where external data lies; the file's where None.
        fold_constants: compute what depends on constants alone when the graph is loaded. That
            unpacks FP4 weights to fp32, all at once.
        threads: threads inside an operator. How a sum is split over threads decides its order,
            so this is a fixed number and not the machine's: the same graph and inputs give the
            same bytes on any number of cores (of one instruction set).

    Raises:
        BadInput: ONNX Runtime cannot load the graph.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        name: str | None = None,
        folder: Path | None = None,
        fold_constants: bool = True,
        threads: int = 1,
    ) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.use_deterministic_compute = True
        options.log_severity_level = 3
        if folder is not None:
            options.add_session_config_entry(_DATA_FOLDER, str(folder))
        self._name = name or (model.name if isinstance(model, Path) else "graph")
        try:
            self._session = ort.InferenceSession(
                model if isinstance(model, bytes) else str(model),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=None if fold_constants else ["ConstantFolding"],
            )
        # Its exception classes are private and share no base below Exception.
        except Exception as error:
            raise BadInput(
                f"ONNX Runtime cannot load the graph: {first_line(error)}",
                where=self._name,
                fix=f"onnxruntime {ort.__version__} is installed; build the bundle again",
            ) from error
        self._inputs = {arg.name: self._spec(arg) for arg in self._session.get_inputs()}
        self._outputs = {arg.name: self._spec(arg) for arg in self._session.get_outputs()}

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        return self._inputs

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        return self._outputs

    def full(self, name: str, value: float = 0.0) -> Array:
        spec = self._inputs.get(name) or self._outputs[name]
        return np.full(self._resolve(spec, {}), value, np.dtype(spec.dtype))

    def run(
        self, inputs: Mapping[str, Array], outputs: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        if unknown := inputs.keys() ^ self._inputs.keys():
            raise BadInput(
                f"inputs are not those of the graph: {', '.join(sorted(unknown))}", where=self._name
            )
        axes: dict[str, int] = {}
        bound = {name: self._check(self._inputs[name], inputs[name], axes) for name in inputs}
        results = {}
        for name, spec in self._outputs.items():
            buffer = (outputs or {}).get(name)
            if buffer is None:
                buffer = np.empty(self._resolve(spec, axes), np.dtype(spec.dtype))
            results[name] = buffer
        binding = self._session.io_binding()
        for name, array in bound.items():
            binding.bind_ortvalue_input(name, _ort_value(array))
        for name, array in results.items():
            binding.bind_ortvalue_output(name, _ort_value(array))
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise BadInput(f"ONNX Runtime failed: {first_line(error)}", where=self._name) from error
        return results

    def _spec(self, arg: Any) -> TensorSpec:
        dtype = _DTYPES.get(arg.type)
        if dtype is None:
            raise BadInput(f"{arg.name} has unsupported type {arg.type}", where=self._name)
        shape = tuple(
            size if isinstance(size, int) else (size or f"{arg.name}.{axis}")
            for axis, size in enumerate(arg.shape)
        )
        return TensorSpec(name=arg.name, dtype=dtype.name, shape=shape)

    def _resolve(self, spec: TensorSpec, axes: Mapping[str, int]) -> tuple[int, ...]:
        shape = []
        for size in spec.shape:
            known = size if isinstance(size, int) else axes.get(size)
            if known is None:
                raise BadInput(f"{spec.name} has a free axis {size!r}", where=self._name)
            shape.append(known)
        return tuple(shape)

    def _check(self, spec: TensorSpec, value: Array, axes: dict[str, int]) -> Array:
        shape = tuple(value.shape)
        fits = len(shape) == len(spec.shape) and all(
            size == axes.setdefault(declared, size)
            if isinstance(declared, str)
            else size == declared
            for size, declared in zip(shape, spec.shape, strict=True)
        )
        if not fits:
            raise BadInput(
                f"{spec.name} has shape {list(shape)}, the graph wants {list(spec.shape)}",
                where=self._name,
            )
        dtype = np.dtype(spec.dtype)
        if value.dtype != dtype and not (value.dtype in _FLOATS and dtype in _FLOATS):
            raise BadInput(
                f"{spec.name} is {value.dtype}, the graph wants {spec.dtype}", where=self._name
            )
        return np.ascontiguousarray(value, dtype)


def _ort_value(array: Array) -> Any:
    """A value over the array's own memory; numpy knows no bfloat16, so that goes as uint16."""
    import onnxruntime as ort

    if array.dtype == BFLOAT16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(
            array.view(np.uint16), _ONNX_BFLOAT16
        )
    return ort.OrtValue.ortvalue_from_numpy(array)


def cpu_executor(bundle: Bundle, graph: str, *, threads: int = 1) -> OnnxRuntimeExecutor:
    """Executor of graph `graph`, by its name in the manifest, on the CPU.

    That is its CPU twin, or the graph itself where it needs none.

    Raises:
        BadInput: the bundle has no such graph, it cannot run on a CPU, or see
            `fastwan.onnx_guard.bundle_graph`.
        VerificationFailed: a file differs from its hash.
    """
    from fastwan.onnx_guard import bundle_graph

    record = bundle.manifest.onnx.graphs.get(graph)
    if record is None:
        raise BadInput(
            f"bundle has no graph {graph!r}",
            where=str(bundle.root),
            fix="build it with all components",
        )
    relative = record.cpu_file or record.file
    checked = bundle_graph(bundle, relative, record.data)
    _refuse_other_domains(checked.model, relative)
    name = PurePosixPath(relative).name
    return OnnxRuntimeExecutor(checked.data, name=name, folder=checked.folder, threads=threads)


def _refuse_other_domains(model: onnx.ModelProto, relative: str) -> None:
    from fastwan.onnx_guard import all_nodes

    local = {(function.domain, function.name) for function in model.functions}
    for node in all_nodes(model):
        if node.domain not in ("", "ai.onnx") and (node.domain, node.op_type) not in local:
            raise BadInput(
                f"no CPU reference: the graph uses {node.domain}::{node.op_type}",
                where=relative,
                fix="bundles of small videos have one; this one needs a CUDA device",
            )
