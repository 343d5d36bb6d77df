"""One block of the 1.3 B transformer at 832x480x81 under each fusion, as the builder makes it.

From one attention to the next: engines, kernels, bytes of passes over memory, FP4.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from fastwan.config import FUSIONS, TARGETS, DiTConfig
from fastwan.engines.backend import BuildOptions, BuiltEngine
from fastwan.engines.coverage import check_coverage, check_onnx_linears
from fastwan.engines.plan import DitPlan, plan_dit, serialized
from fastwan.engines.regions import region_records
from fastwan.engines.source import EngineSource
from fastwan.engines.tensorrt_rtx import TensorRTRTX
from fastwan.export.attentions import find_attention
from fastwan.export.dit_graph import targeted_linears
from fastwan.export.passes.fusions import find_fusion
from fastwan.export.recipes import NVFP4
from fastwan.manifest import Engine
from fastwan.progress import Quiet
from fastwan.quality.cost import Cost, kernel_cost, region_cost, total
from fastwan.quality.gpus import rates_of

pytestmark = [pytest.mark.slow, pytest.mark.trt]

CONFIG = DiTConfig(num_layers=3)
GPU = rates_of("rtx5090")
CROSS_MB = 130
"""What the attention to the prompt moves where it is a kernel of ours; it has arithmetic too."""


@dataclass(frozen=True)
class Limits:
    """Largest figures of a block; `memory_mb` of kernels without matrix arithmetic."""

    kernels: int
    memory_mb: int
    milliseconds: float


LIMITS = {
    "none": Limits(31, 4_780, 13.6),
    "gelu": Limits(30, 3_600, 12.9),
    "gelu+cross": Limits(25, 3_100 - CROSS_MB, 12.2),
    "all": Limits(22, 2_500 - CROSS_MB, 11.9),
}


@dataclass(frozen=True)
class Built:
    """A plan and its engines."""

    plan: DitPlan
    engines: dict[str, BuiltEngine]

    def block(self) -> Cost:
        """What runs behind the first attention, up to the end of the second one."""
        records = {
            part.name: Engine(
                file=part.name,
                component="dit",
                inputs=self.engines[part.name].inputs,
                outputs=self.engines[part.name].outputs,
                scratch_bytes=0,
                runs=part.cadence,
            )
            for part in self.plan.parts
        }
        regions = region_records(self.plan.regions, records)
        costs: list[tuple[bool, Cost]] = []
        for name, engine in records.items():
            if engine.runs != "step":
                continue
            costs.append((False, total(kernel_cost(r, GPU) for r in self.engines[name].layers)))
            for region in (each for each in regions.values() if each.after == name):
                attends = any(node.op == "SageAttention3" for node in region.nodes)
                costs.append((attends, region_cost(region, GPU)))
        first, second, *_ = (index for index, (attends, _) in enumerate(costs) if attends)
        return total(cost for _, cost in costs[first + 1 : second + 1])


@pytest.fixture(scope="module", params=list(FUSIONS))
def built(request: pytest.FixtureRequest, graph: tuple[ir.Model, Path]) -> tuple[str, Built]:
    model, folder = graph
    name: str = request.param
    plan = plan_dit(
        model,
        targeted_linears(CONFIG, NVFP4()),
        attention=find_attention("sage3"),
        plugins=False,
        fusion=find_fusion(name),
    )
    backend = TensorRTRTX()
    engines = {}
    for part in plan.parts:
        data = serialized(part.model)
        source = EngineSource(part.name, "dit", data, folder, part.cadence, part.linears)
        engines[part.name] = backend.build(source, BuildOptions(TARGETS["rtx5090"]), Quiet())
    backend.close()
    return name, Built(plan, engines)


def test_a_block_moves_no_more_than_its_fusion_allows(built: tuple[str, Built]) -> None:
    name, made = built
    block, limits = made.block(), LIMITS[name]
    assert block.kernels <= limits.kernels
    assert block.memory_bound_bytes <= limits.memory_mb * 1e6
    assert block.seconds * 1e3 <= limits.milliseconds


def test_every_linear_of_every_engine_is_an_fp4_gemm(built: tuple[str, Built]) -> None:
    _, made = built
    covered = 0
    for part in made.plan.parts:
        model = onnx.load_from_string(serialized(part.model))
        elements = check_onnx_linears(model, part.linears)
        coverage = check_coverage(made.engines[part.name].layers, part.linears, elements)
        assert coverage.lost == ()
        covered += sum(len(linear.sources) for linear in coverage.covered)
    assert covered == 10 * CONFIG.num_layers


def test_fusions_move_ever_less() -> None:
    figures = [LIMITS[name].memory_mb for name in FUSIONS]
    assert figures == sorted(figures, reverse=True)
