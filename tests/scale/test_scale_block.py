"""One block of the 1.3 B transformer at 832x480x81, as the builder fuses it.

The limits are of issue and design: bytes of kernels without matrix arithmetic, scratch, FP4.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx_ir as ir
import pytest

from fastwan.config import TARGETS, DiTConfig, VideoShape
from fastwan.engines.backend import BuildOptions, BuiltEngine
from fastwan.engines.coverage import check_coverage
from fastwan.engines.plan import GraphPart, plan_dit, serialized
from fastwan.engines.source import EngineSource
from fastwan.engines.tensorrt_rtx import TensorRTRTX
from fastwan.export.attentions import find_attention
from fastwan.export.dit_graph import targeted_linears
from fastwan.export.recipes import NVFP4
from fastwan.progress import Quiet
from fastwan.quality.cost import kernel_cost
from fastwan.quality.gpus import UNKNOWN

pytestmark = [pytest.mark.slow, pytest.mark.trt]

CONFIG = DiTConfig(num_layers=3)
LIMIT_MB = {"sage3": 4460, "native": 5850}
SCRATCH = 1_400_000_000
MIDDLE = {"sage3": "segment_01", "native": "dit_01"}


@pytest.fixture(scope="module", params=["sage3", "native"])
def block(
    request: pytest.FixtureRequest, graph: tuple[ir.Model, Path]
) -> tuple[str, GraphPart, BuiltEngine]:
    model, folder = graph
    attention: str = request.param
    linears = targeted_linears(CONFIG, NVFP4())
    plan = plan_dit(model, linears, attention=find_attention(attention), plugins=False)
    part = next(part for part in plan.parts if part.name == MIDDLE[attention])
    source = EngineSource(
        part.name, "dit", serialized(part.model), folder, part.cadence, part.linears
    )
    built = TensorRTRTX().build(source, BuildOptions(TARGETS["rtx5090"]), Quiet())
    return attention, part, built


def test_memory_bound_bytes(block: tuple[str, GraphPart, BuiltEngine]) -> None:
    attention, _, built = block
    moved = {r.name: kernel_cost(r, UNKNOWN).memory_bound_bytes for r in built.layers}
    largest = sorted(moved.items(), key=lambda item: -item[1])[:6]
    assert sum(moved.values()) <= LIMIT_MB[attention] * 1_000_000, largest


def test_scratch(block: tuple[str, GraphPart, BuiltEngine]) -> None:
    assert block[2].scratch_bytes < SCRATCH


def test_every_linear_is_an_fp4_gemm(block: tuple[str, GraphPart, BuiltEngine]) -> None:
    _, part, built = block
    assert len(part.linears) == 6  # qkv, to_out, to_q, to_out, fc1, fc2
    coverage = check_coverage(built.layers, part.linears)
    assert coverage.lost == ()


def test_no_fp32_copy_is_stored(block: tuple[str, GraphPart, BuiltEngine]) -> None:
    tokens = VideoShape().num_tokens
    wide = [
        (record.name, tensor.shape)
        for record in block[2].layers
        for tensor in record.outputs
        if tensor.dtype == "Float" and tensor.elements() >= tokens * CONFIG.width
    ]
    assert wide == []


def test_kernels(block: tuple[str, GraphPart, BuiltEngine]) -> None:
    """One GEMM and one quantiser for each of the six linears, whatever precedes them."""
    attention, _, built = block
    kinds = Counter(record.kind for record in built.layers)
    assert kinds["gemm"] == 6
    assert kinds["attention"] == (1 if attention == "sage3" else 2)
    quantisers = [record for record in built.layers if record.name.startswith("__myl_Dyna")]
    assert len(quantisers) == 6
