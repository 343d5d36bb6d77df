"""Shapes at the edges: one frame, one token, whole tiles, upright, long, and the largest in width.

The tiny model is built at each, held against its references and played on the CPU. Blocks of the
1.3 B model are built at the smallest and the largest shape that `plan` shows by default, and held
to what it predicts there from a build at 832x480x81.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fastwan.build import BuildSpec, build_engine
from fastwan.config import TARGETS, DiTConfig, VideoShape
from fastwan.engines.backend import BuildOptions
from fastwan.engines.plan import plan_dit, serialized
from fastwan.engines.source import EngineSource
from fastwan.engines.tensorrt_rtx import TensorRTRTX
from fastwan.export.attentions import find_attention
from fastwan.export.dit_graph import build_dit_graph, targeted_linears
from fastwan.export.passes.fusions import find_fusion
from fastwan.export.recipes import NVFP4
from fastwan.progress import Quiet
from fastwan.quality.built_records import shipped_records
from fastwan.quality.cost import kernel_cost, total
from fastwan.quality.gpus import UNKNOWN
from fastwan.quality.reshape import reshaped
from fastwan.quality.verify.run import verify_bundle
from fastwan.runtime.generate import generate

pytestmark = [pytest.mark.slow, pytest.mark.trt]

SHAPES = {
    "one frame": VideoShape(96, 160, 1),
    "one token": VideoShape(16, 16, 1),
    "one whole tile": VideoShape(256, 128, 1),
    "upright": VideoShape(160, 96, 9),
    "long": VideoShape(32, 48, 121),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_tiny_model_is_built_verified_and_played(
    tiny_folder: Path, tmp_path: Path, name: str
) -> None:
    shape = SHAPES[name]
    bundle = tmp_path / "bundle"
    spec = BuildSpec(
        checkpoint=str(tiny_folder), output=bundle, height=shape.height, width=shape.width,
        num_frames=shape.num_frames, use_cache=False,
    )  # fmt: skip
    manifest = build_engine(spec, Quiet())
    assert manifest.onnx.model.shape == shape
    report = verify_bundle(bundle, progress=Quiet())
    assert report.checks
    assert report.passed, [check for check in report.checks if not check.passed]
    (video,) = generate(
        bundle, ["a fox"], tmp_path / "frames", device="cpu", progress=Quiet()
    ).videos
    frames = sorted((tmp_path / "frames").glob("*.png"))
    assert video.frame_count == len(frames) == shape.num_frames
    assert (video.width, video.height) == (shape.width, shape.height)


@pytest.mark.parametrize(
    "shape", [VideoShape(480, 832, 1), VideoShape(720, 1280, 121)], ids=["smallest", "largest"]
)
def test_a_block_at_another_shape_is_what_plan_predicts(
    graph: tuple[ir.Model, Path], shape: VideoShape
) -> None:
    """The engines of the second block of the 1.3 B model, between its neighbours."""
    config = DiTConfig(num_layers=3)
    filled, folder = graph
    model = build_dit_graph(config, shape, NVFP4())
    for name, value in model.graph.initializers.items():
        if value.const_value is None:  # rope tables are of this shape, weights of any
            value.const_value = filled.graph.initializers[name].const_value
        if name.endswith("qkv.weight_scale_2"):  # of a merged weight, as export makes it
            value.const_value = ir.tensor(np.float32(1))
    fusion = find_fusion("all")
    linears = targeted_linears(config, NVFP4())
    plan = plan_dit(
        model, linears, attention=find_attention("sage3"), plugins=False, fusion=fusion,
        weights="data",
    )  # fmt: skip
    there = reshaped(shipped_records("FastWan-QAD-1.3B", "sage3", "all"), shape)
    block = [part for part in plan.parts if part.name in {f"segment_{i:02}" for i in range(7, 13)}]
    assert len(block) == 6
    builder = TensorRTRTX()
    try:
        for part in block:
            assert part.gemm is not None
            source = EngineSource(
                part.name, "dit", serialized(part.gemm.model), folder, part.cadence, ()
            )
            built = builder.build(source, BuildOptions(TARGETS["rtx5090"]), Quiet())
            seen = total(kernel_cost(record, UNKNOWN) for record in built.layers)
            said = total(kernel_cost(record, UNKNOWN) for record in there.layers[part.name])
            assert (said.kernels, said.flops) == (seen.kernels, seen.flops), part.name
            assert said.bytes_moved == pytest.approx(seen.bytes_moved, rel=0.02), part.name
            # The builder gives FP4 GEMMs another workspace at other sizes, by megabytes.
            predicted = there.manifest.engines[part.name].scratch_bytes
            assert predicted == pytest.approx(built.scratch_bytes, abs=24_000_000), part.name
    finally:
        builder.close()
