"""One block of the 1.3 B transformer at 832x480x81 under each fusion, as the builder makes it.

From one attention to the next: engines, kernels, bytes of passes over memory, FP4. And what it
costs to give engines their weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from fastwan.config import FUSIONS, TARGETS, DiTConfig
from fastwan.engines.backend import BuildOptions, BuiltEngine
from fastwan.engines.coverage import check_coverage, check_onnx_linears
from fastwan.engines.plan import DATA, INLINE, DitPlan, plan_dit, serialized
from fastwan.engines.regions import region_records, tensor_spec
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
    """A plan and its engines, with their records by the nodes of their own graphs."""

    plan: DitPlan
    engines: dict[str, BuiltEngine]

    def block(self) -> Cost:
        """What runs behind the first attention, up to the end of the second one."""
        costs = self._costs()
        first, second, *_ = (index for index, (attends, _) in enumerate(costs) if attends)
        return total(cost for _, cost in costs[first + 1 : second + 1])

    def step(self) -> Cost:
        """All that runs in a step of these few blocks."""
        return total(cost for _, cost in self._costs())

    def _costs(self) -> list[tuple[bool, Cost]]:
        """Of engines and regions in their order: whether it is the attention, and its cost."""
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
        return costs


Build = Callable[[str, str], Built]


@pytest.fixture(scope="module")
def build(graph: tuple[ir.Model, Path]) -> Build:
    """Build a fusion with weights inline or as data, each once."""
    model, folder = graph

    @cache
    def made(fusion: str, weights: str) -> Built:
        plan = plan_dit(
            model,
            targeted_linears(CONFIG, NVFP4()),
            attention=find_attention("sage3"),
            plugins=False,
            fusion=find_fusion(fusion),
            weights=weights,
        )
        backend = TensorRTRTX()
        plans: dict[str, BuiltEngine] = {}
        engines = {}
        for part in plan.parts:
            gemm = part.gemm
            name, shown = (part.name, part.model) if gemm is None else (gemm.name, gemm.model)
            if name not in plans:
                source = EngineSource(name, "dit", serialized(shown), folder, part.cadence)
                options = BuildOptions(TARGETS["rtx5090"])
                plans[name] = backend.build(source, options, Quiet())
            found = plans[name]
            if gemm is not None:
                own = gemm.nodes
                layers = (replace(r, nodes=tuple(own[n] for n in r.nodes)) for r in found.layers)
                found = replace(
                    found,
                    layers=tuple(layers),
                    inputs=tuple(map(tensor_spec, part.model.graph.inputs)),
                    outputs=tuple(map(tensor_spec, part.model.graph.outputs)),
                )
            engines[part.name] = found
        backend.close()
        return Built(plan, engines)

    return made


@pytest.fixture(scope="module", params=list(FUSIONS))
def built(request: pytest.FixtureRequest, build: Build) -> tuple[str, Built]:
    return request.param, build(request.param, INLINE)


def test_a_block_moves_no_more_than_its_fusion_allows(built: tuple[str, Built]) -> None:
    name, made = built
    block, limits = made.block(), LIMITS[name]
    assert block.kernels <= limits.kernels
    assert block.memory_bound_bytes <= limits.memory_mb * 1e6
    assert block.seconds * 1e3 <= limits.milliseconds


def test_every_linear_of_every_engine_is_an_fp4_gemm(built: tuple[str, Built]) -> None:
    assert fp4_linears(built[1]) == 10 * CONFIG.num_layers


def fp4_linears(made: Built) -> int:
    """Linears of the checkpoint that are FP4 GEMMs; none may be lost."""
    covered = 0
    for part in made.plan.parts:
        model = onnx.load_from_string(serialized(part.model))
        elements = check_onnx_linears(model, part.linears)
        coverage = check_coverage(made.engines[part.name].layers, part.linears, elements)
        assert coverage.lost == ()
        covered += sum(len(linear.sources) for linear in coverage.covered)
    return covered


def test_given_weights_cost_at_most_a_hundredth_and_no_fp4(build: Build) -> None:
    """Of a step, and so of a video: all that a video has beside its steps is the same."""
    inline, data = build("all", INLINE), build("all", DATA)
    given = [part for part in data.plan.parts if part.gemm is not None]
    # All six of a block: merged query, key and value, both outputs, a query, and two of the MLP.
    assert len(given) == 6 * CONFIG.num_layers
    assert len({part.gemm.name for part in given if part.gemm is not None}) == 4
    assert fp4_linears(data) == fp4_linears(inline) == 10 * CONFIG.num_layers
    before, after = inline.step(), data.step()
    # Two kernels bring the scales of each weight into the layout of the tensor cores.
    assert after.kernels == before.kernels + 2 * len(given)
    assert before.seconds < after.seconds <= 1.01 * before.seconds


def test_fusions_move_ever_less() -> None:
    figures = [LIMITS[name].memory_mb for name in FUSIONS]
    assert figures == sorted(figures, reverse=True)
