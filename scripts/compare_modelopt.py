"""ModelOpt's own ONNX export with its NVFP4 exporter, and ours, side by side on the same weights.

    python scripts/compare_modelopt.py --blocks 1 2 4

Each side exports N blocks of the transformer's linears (q, k, v, out and the feed-forward; about 33
million weights a block) in a process of its own, then TensorRT-RTX builds an RTX 5090 engine of
what it wrote. Prints a markdown table; a size that a side does not survive is a row that says why.

ModelOpt's exporter needs its extra ``[onnx]`` (onnx-graphsurgeon, onnxslim, lief). Its fake
quantisation asserts CUDA while the graph is traced; on a machine without a GPU it is replaced by
the identity here, which changes no node and no weight of the exported graph.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

WIDTH, HIDDEN, TOKENS = 1536, 8960, 4096
NAMES = ("to_q", "to_k", "to_v", "to_out", "fc1", "fc2")


class Blocks(nn.Module):
    """N blocks of linears; `make` builds one from (inputs, outputs)."""

    def __init__(self, count: int, make: object) -> None:
        super().__init__()
        sizes = [(WIDTH, WIDTH)] * 4 + [(WIDTH, HIDDEN), (HIDDEN, WIDTH)]
        self.blocks = nn.ModuleList(
            nn.ModuleDict({n: make(*size) for n, size in zip(NAMES, sizes, strict=True)})  # type: ignore[operator]
            for _ in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            x = x + block["to_out"](block["to_q"](x) + block["to_k"](x) + block["to_v"](x))
            hidden = torch.nn.functional.gelu(block["fc1"](x).float(), approximate="tanh")
            x = x + block["fc2"](hidden.to(x.dtype))
        return x


def weight(index: int, name: str, shape: tuple[int, ...]) -> Tensor:
    """The same weights for both sides, bf16."""
    generator = torch.Generator().manual_seed(1000 * index + NAMES.index(name))
    return (torch.randn(shape, generator=generator) * 0.03).bfloat16()


def export_modelopt(count: int, folder: Path) -> Path:
    import modelopt.torch.quantization as mtq
    import modelopt.torch.quantization.tensor_quant as tensor_quant
    import onnx
    from modelopt.onnx.export import NVFP4QuantExporter
    from modelopt.torch.quantization.export_onnx import configure_linear_module_onnx_quantizers

    from fastwan.export.quantize import modelopt_config

    model = Blocks(count, nn.Linear).half().eval().requires_grad_(False)
    for index, block in enumerate(model.blocks):
        for name in NAMES:
            linear = block[name]  # type: ignore[index]
            linear.weight.copy_(weight(index, name, tuple(linear.weight.shape)))
    mtq.quantize(model, modelopt_config(), None)
    for module in model.modules():
        if hasattr(module, "input_quantizer"):
            module.input_quantizer.amax = torch.tensor(2688.0)
    if not torch.cuda.is_available():
        tensor_quant._dynamic_block_quantize_forward = lambda _, x, *a, **k: x.clone()
    buffer = io.BytesIO()
    with configure_linear_module_onnx_quantizers(model), torch.no_grad():
        x = torch.zeros(1, TOKENS, WIDTH, dtype=torch.float16)
        torch.onnx.export(model, (x,), buffer, dynamo=False, opset_version=20)
    exported = NVFP4QuantExporter.process_model(onnx.load_from_string(buffer.getvalue()))
    onnx.save(exported, folder / "model.onnx")
    return folder / "model.onnx"


def export_ours(count: int, folder: Path) -> Path:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from fastwan.export.linear_names import name_linears
    from fastwan.export.models.layers import Linear
    from fastwan.export.onnx_io import attach, data_file, save_model
    from fastwan.export.passes.graphs import FASTWAN
    from fastwan.export.recipes import NVFP4
    from fastwan.export.tracing import trace

    recipe = NVFP4()

    def make(inputs: int, outputs: int) -> Linear:
        return Linear(inputs, outputs, recipe, torch.bfloat16)

    with FakeTensorMode(allow_non_fake_inputs=True):
        model = trace(
            Blocks(count, make).eval(),
            (torch.empty(1, TOKENS, WIDTH, dtype=torch.bfloat16),),
            name="blocks",
            inputs=["x"],
            outputs=["y"],
            translations=recipe.translations(),
        )
    name_linears(model.graph, recipe)
    recipe.expand(model)
    model.graph.opset_imports.pop(FASTWAN, None)
    values = model.graph.initializers
    with data_file(folder / "model.data") as writer:
        for index in range(count):
            for name in NAMES:
                prefix = f"blocks.{index}.{name}"
                shape = tuple(values[f"{prefix}.weight"].shape.numpy())  # type: ignore[union-attr]
                parts = recipe.convert(weight(index, name, shape), torch.bfloat16)
                parts["bias"] = torch.zeros(shape[0], dtype=torch.bfloat16)
                for part, tensor in parts.items():
                    attach(values[f"{prefix}.{part}"], tensor, writer)
    save_model(model, folder / "model.onnx")
    return folder / "model.onnx"


def measure(side: str, count: int, folder: Path) -> dict[str, object]:
    """Run one side in this process; figures of the export, then of its engine."""
    torch.set_num_threads(1)
    begin = time.monotonic()
    path = {"modelopt": export_modelopt, "ours": export_ours}[side](count, folder)
    used = resource.getrusage(resource.RUSAGE_SELF)
    result: dict[str, object] = {
        "seconds": time.monotonic() - begin,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_bytes": used.ru_maxrss * 1024,
        "file_bytes": sum(file.stat().st_size for file in folder.iterdir()),
    }
    from fastwan.config import TARGETS
    from fastwan.engines.backend import BuildOptions
    from fastwan.engines.source import EngineSource
    from fastwan.engines.tensorrt_rtx import TensorRTRTX
    from fastwan.export.recipes.nvfp4 import is_fp4_gemm
    from fastwan.progress import Quiet
    from fastwan.quality.cost import kernel_cost
    from fastwan.quality.gpus import UNKNOWN

    source = EngineSource("blocks", "dit", path.read_bytes(), folder, "step")
    built = TensorRTRTX().build(source, BuildOptions(TARGETS["rtx5090"]), Quiet())
    costs = [kernel_cost(record, UNKNOWN) for record in built.layers]
    return result | {
        "engine_bytes": built.plan.nbytes,
        "kernels": len(costs),
        "fp4_gemms": sum(map(is_fp4_gemm, built.layers)),
        "bytes_moved": sum(cost.bytes_moved for cost in costs),
    }


def row(side: str, count: int, figures: dict[str, float] | str) -> str:
    if isinstance(figures, str):
        return f"| {side} | {count} | {figures} |" + " |" * 7
    return (
        f"| {side} | {count} | {figures['seconds']:.1f} | {figures['cpu_seconds']:.1f} "
        f"| {figures['peak_bytes'] / 1e9:.2f} | {figures['file_bytes'] / 1e6:.1f} "
        f"| {figures['engine_bytes'] / 1e6:.1f} | {figures['kernels']} | {figures['fp4_gemms']} "
        f"| {figures['bytes_moved'] / 1e6:.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--side", choices=["modelopt", "ours"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(options.side, options.blocks[0], Path(folder))))
        return
    heads = ["s", "CPU-s", "peak GB", "ONNX MB", "engine MB", "kernels", "FP4 GEMMs", "MB moved"]
    print(f"| export (measured) | blocks | {' | '.join(heads)} |")
    print("|---" * (len(heads) + 2) + "|")
    for count in options.blocks:
        for side in ("modelopt", "ours"):
            command = [sys.executable, __file__, "--side", side, "--blocks", str(count)]
            run = subprocess.run(command, capture_output=True, text=True)
            if run.returncode == 0:
                figures: dict[str, float] | str = json.loads(run.stdout.splitlines()[-1])
            else:
                lines = [line for line in run.stderr.splitlines() if line.strip()]
                figures = f"fails: {lines[-1][:90] if lines else run.returncode}"
            print(row(side, count, figures), flush=True)


if __name__ == "__main__":
    main()
