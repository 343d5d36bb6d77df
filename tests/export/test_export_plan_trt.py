"""The parts of the tiny transformer parse and build for SM120, in both attention modes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fastwan.config import TARGETS
from fastwan.engines.backend import BuildOptions
from fastwan.engines.coverage import check_coverage
from fastwan.engines.plan import plan_dit, serialized
from fastwan.engines.source import EngineSource
from fastwan.engines.tensorrt_rtx import TensorRTRTX
from fastwan.export.attentions import find_attention
from fastwan.export.dit_graph import targeted_linears
from fastwan.export.recipes import NVFP4
from fastwan.manifest import Linear
from fastwan.progress import Quiet


@pytest.mark.trt
@pytest.mark.parametrize("attention", ["sage3", "native"])
def test_parts_build_in_fp4_to_the_same_bytes(
    exported: Any, tiny: Any, builder: TensorRTRTX, attention: str, tmp_path: Path
) -> None:
    linears = targeted_linears(tiny.config, NVFP4())
    options = BuildOptions(TARGETS["rtx5090"])
    plan = plan_dit(exported.model(), linears, attention=find_attention(attention), plugins=False)
    covered: list[Linear] = []
    # Where the files lie must not show: the builder orders some lists by its objects' addresses.
    elsewhere = tmp_path / "a folder whose path is much longer than that of the first build"
    shutil.copytree(exported.folder, elsewhere)
    for part in plan.parts:
        graph = serialized(part.model)
        source = EngineSource(part.name, "dit", graph, exported.folder, part.cadence, part.linears)
        built = builder.build(source, options, Quiet())
        coverage = check_coverage(built.layers, part.linears)
        assert coverage.lost == ()
        covered += coverage.covered
        if attention == "native" and part.name in ("time_tables", "text_kv"):
            continue  # the same graphs in both modes
        again = builder.build(replace(source, base_dir=elsewhere), options, Quiet())
        assert bytes(again.plan) == bytes(built.plan), part.name
    assert sorted(linear.name for linear in covered) == sorted(linear.name for linear in linears)
