"""Load and run the transformer's engines of a bundle through TensorRT-RTX on the GPU here."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from fastwan.bundle import Bundle, open_bundle
from fastwan.export.attentions import EXACT
from fastwan.export.checkpoint.reader import open_checkpoint
from fastwan.export.checkpoint.synthetic import make_checkpoint
from fastwan.export.recipes import BF16
from fastwan.export.weights import load_module
from fastwan.manifest import Engine

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
Record = dict[str, Any]


def check(path: Path) -> Record:
    """Run the transformer of a bundle in native attention and bf16 against the torch module.

    The bundle is built from ``make-checkpoint --size tiny`` with seed 0; the module gets the same
    weights here.
    """
    import tensorrt_rtx as trt

    bundle = open_bundle(path)
    manifest = bundle.manifest
    shape = manifest.onnx.model.shape
    logger = _logger(trt)
    runtime = trt.Runtime(logger)
    generator = torch.Generator().manual_seed(0)
    values: dict[str, torch.Tensor] = {}
    for engine in manifest.engines.values():
        for spec in engine.inputs:
            if spec.name not in values and spec.name != "timestep":
                size = [int(dimension) for dimension in spec.shape]
                values[spec.name] = torch.randn(size, generator=generator).to(_DTYPES[spec.dtype])
    values = {name: tensor.cuda() for name, tensor in values.items()}
    values["timestep"] = torch.tensor([857.0], device="cuda")
    record: Record = {"target": manifest.target, "version": trt.__version__, "engines": {}}
    for name, engine in manifest.engines.items():
        ran = _run(runtime, bundle, engine, values)
        if ran is None:
            return record | {"runs": False, "reason": logger.errors[-1]}
        record["engines"][name] = ran
    folder = Path(tempfile.mkdtemp()) / "tiny"
    make_checkpoint(folder, size="tiny")
    checkpoint = open_checkpoint(folder, components=("dit",))
    module = load_module(checkpoint.transformer, checkpoint.dit_config, shape, BF16())
    module.set_quantizers(activations=False, attention=EXACT)
    arguments = (values["latents"], values["timestep"], values["encoder_hidden_states"])
    with torch.no_grad():
        expected = module(*(tensor.cpu() for tensor in arguments)).float()
    actual = values["velocity"].float().cpu()
    record["runs"] = True
    record["relative_difference_to_torch"] = float((actual - expected).norm() / expected.norm())
    return record


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps the builder's errors, which say why an engine is refused."""

        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(" ".join(message.split()))

    return Logger()


def _run(
    runtime: Any, bundle: Bundle, engine: Engine, values: dict[str, torch.Tensor]
) -> Record | None:
    """Times of one engine, whose outputs go to `values`; None where the GPU is refused."""
    begin = time.perf_counter()
    loaded = runtime.deserialize_cuda_engine(bundle.read(engine.file))
    if loaded is None:
        return None
    seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    context = loaded.create_execution_context()
    for spec in engine.inputs:
        context.set_tensor_address(spec.name, values[spec.name].data_ptr())
    for spec in engine.outputs:
        size = [int(dimension) for dimension in spec.shape]
        values[spec.name] = torch.full(size, 7.0, dtype=_DTYPES[spec.dtype], device="cuda")
        context.set_tensor_address(spec.name, values[spec.name].data_ptr())
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    if not context.execute_async_v3(stream.cuda_stream):
        raise RuntimeError(f"{engine.file} did not run")
    torch.cuda.synchronize()
    first = time.perf_counter() - begin
    return {"load_seconds": seconds, "compile_and_first_run_seconds": first}
