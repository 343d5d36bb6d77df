"""`plan`: shapes that nobody built, priced by the records of one that was."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from fastwan.build import BuildSpec, build_engine
from fastwan.bundle import Bundle, open_bundle
from fastwan.cli import main
from fastwan.config import FUSIONS, MODELS, VideoShape
from fastwan.errors import BadInput
from fastwan.plugins.loader import checkout_root
from fastwan.progress import Quiet
from fastwan.quality import built_records
from fastwan.quality.built_records import BuiltRecords, shipped, shipped_records, unpacked
from fastwan.quality.cost import kernel_cost
from fastwan.quality.gpus import UNKNOWN
from fastwan.quality.plan_report import PlannedShape
from fastwan.quality.report import inspect_bundle
from fastwan.quality.reshape import reshaped
from fastwan.quality.video_plan import (
    USUAL_SHAPES,
    PlanSpec,
    plan_shapes,
    planned,
    report_of,
)
from fastwan.shapes import parse_shape
from testkit.once import Once

PUBLISHED = VideoShape(480, 832, 81)
ONE_FRAME = VideoShape(480, 832, 1)
LARGE = VideoShape(720, 1280, 121)
LONG = VideoShape(720, 1280, 161)
SHIPPED = sorted(shipped())
ALONE = PlanSpec(targets=("rtx5090",))
FP8 = PlanSpec(
    model="FastWan-QAD-FP8-1.3B", targets=("rtx4090",), text_encoder_recipe="fp8",
    shapes=(PUBLISHED,),
)  # fmt: skip


@pytest.fixture(scope="module")
def nvfp4() -> BuiltRecords:
    return shipped_records("FastWan-QAD-1.3B", "sage3", "all")


def same_as_inspected(bundle: Bundle) -> None:
    records = BuiltRecords.of(bundle)
    records = unpacked(records.packed(), "here")
    target = bundle.manifest.target
    row = planned(records, bundle.manifest.onnx.model.shape, PlanSpec(targets=(target,)))
    video = row.targets[target]
    seen = inspect_bundle(bundle)
    assert seen.prediction is not None
    steps = [name for name in seen.prediction.stages if name.startswith("step")]
    launched = [each for name, each in seen.prediction.stages.items() if name != "tables"]
    assert len(steps) == 3
    assert video.video_ms == seen.prediction.video_ms
    assert video.step_ms == seen.prediction.step_ms
    assert video.sober_video_ms == seen.prediction.sober_video_ms
    assert video.decode_ms == seen.prediction.stages["decode"].predicted_ms
    assert video.kernels == sum(each.kernels for each in launched)
    assert video.bytes_moved == sum(each.bytes_moved for each in launched)
    assert row.device_bytes == seen.device_bytes


def test_the_row_of_the_built_shape_is_what_inspect_says(
    make_bundle: Callable[..., Bundle],
) -> None:
    same_as_inspected(make_bundle())


@pytest.mark.trt
def test_and_that_of_a_real_build(tiny_bundle: Path) -> None:
    same_as_inspected(open_bundle(tiny_bundle))


@pytest.fixture(scope="module")
def other_shape(once: Once, tiny_checkpoint: Path) -> Bundle:
    """The tiny model at a shape none of whose sizes is the model's."""

    def build(folder: Path) -> None:
        build_engine(
            BuildSpec(
                str(tiny_checkpoint), folder, height=112, width=144, num_frames=17,
                components=("dit", "decoder"), fusion="all", use_cache=False,
                model="FastWan-QAD-1.3B",
            ),
            Quiet(),
        )  # fmt: skip

    return open_bundle(once("tiny-112x144x17", build))


@pytest.mark.trt
def test_a_row_of_another_shape_is_near_what_inspect_says_of_a_build(
    other_shape: Bundle, data_bundle: Path
) -> None:
    """Within 2 % of time and memory, where the two shapes differ by a third of their tokens."""
    built = open_bundle(data_bundle)
    seen = inspect_bundle(built)
    assert seen.prediction is not None
    records = BuiltRecords.of(other_shape)
    shape = built.manifest.onnx.model.shape
    assert seen.device_bytes is not None
    expected = (
        seen.prediction.video_ms,
        seen.prediction.step_ms,
        seen.prediction.stages["decode"].predicted_ms,
        seen.prediction.sober_video_ms,
        seen.device_bytes.total,
    )
    assert figures(planned(records, shape, ALONE)) == pytest.approx(expected, rel=0.02)
    # At the records' own shape a tiny step is as long, being all launches; a video is not.
    there = figures(planned(records, records.manifest.onnx.model.shape, ALONE))
    for place in (0, 2, 3):
        assert there[place] != pytest.approx(expected[place], rel=0.2)


def figures(row: PlannedShape) -> tuple[float | None, ...]:
    video = row.targets["rtx5090"]
    times = (video.video_ms, video.step_ms, video.decode_ms, video.sober_video_ms)
    return (*times, row.device_bytes.total)


@pytest.mark.parametrize("key", SHIPPED, ids=".".join)
def test_shipped_records_are_of_the_published_shape(key: tuple[str, str, str]) -> None:
    records = shipped_records(*key)
    manifest = records.manifest
    assert (manifest.onnx.model.name, manifest.attention, manifest.fusion) == key
    assert manifest.onnx.model.shape == PUBLISHED
    assert set(manifest.components) == {"dit", "decoder"}
    assert set(records.layers) == set(manifest.engines)
    assert all(records.layers.values())


def test_every_model_is_on_record() -> None:
    kept = {(model, attention) for model, attention, _ in SHIPPED}
    assert {(model.name, model.attention) for model in MODELS.values()} <= kept
    assert ("FastWan-QAD-FP8-1.3B", "sage2") in kept


def test_records_stay_small() -> None:
    folder = Path(built_records.__file__).parent / "built"
    sizes = {file.name: file.stat().st_size for file in folder.glob("*.gz")}
    assert len(sizes) == len(SHIPPED)
    assert max(sizes.values()) < 40_000


@pytest.mark.parametrize("key", SHIPPED, ids=".".join)
@pytest.mark.parametrize("shape", [LARGE, ONE_FRAME, VideoShape(832, 480, 17)], ids=str)
def test_no_size_of_the_built_shape_is_left(key: tuple[str, str, str], shape: VideoShape) -> None:
    """Not in a kernel of a step, not in what lies between engines, not in an attribute."""
    there = reshaped(shipped_records(*key), shape)
    old = {PUBLISHED.num_tokens, PUBLISHED.padded_tokens}
    engines = there.manifest.engines
    steps = [name for name, engine in engines.items() if engine.runs == "step"]
    sizes = {
        size
        for name in steps
        for record in there.layers[name]
        for tensor in record.tensors
        for size in tensor.shape
    }
    for region in there.manifest.regions.values():
        sizes |= {size for spec in region.tensors for size in spec.shape if isinstance(size, int)}
        sizes |= {node.attributes.get("num_tokens", 1) for node in region.nodes}  # type: ignore[misc]
    assert steps
    assert shape.padded_tokens in sizes
    assert not old & sizes


def test_arithmetic_at_another_shape_is_that_of_its_tokens(nvfp4: BuiltRecords) -> None:
    there = reshaped(nvfp4, LARGE)
    tokens, width, ffn = LARGE.padded_tokens, 1536, 8960
    assert (LARGE.num_tokens, tokens) == (111_600, 111_616)
    steps = [name for name, each in there.manifest.engines.items() if each.runs == "step"]
    gemms = [
        kernel_cost(record, UNKNOWN).flops
        for name in steps
        for record in there.layers[name]
        if record.kind == "gemm" and record.precision == "FP4E2M1"
    ]
    block = 3 * width * width + 3 * width * width + 2 * width * ffn  # qkv; to_out, to_q, to_out
    assert sum(gemms) == 30 * 2 * tokens * block
    video = planned(nvfp4, LARGE, ALONE).targets["rtx5090"]
    attention = 4 * 12 * 128 * LARGE.num_tokens**2
    assert video.flops > 3 * (30 * attention + sum(gemms))


def test_time_grows_with_the_square_of_the_tokens_in_the_end(nvfp4: BuiltRecords) -> None:
    """Attention takes most of a long video, and next to nothing of one frame."""
    steps = {
        shape.num_tokens: planned(nvfp4, shape, ALONE).targets["rtx5090"].step_ms
        for shape in (ONE_FRAME, PUBLISHED, LARGE)
    }
    assert all(steps.values())
    small, middle, large = (steps[tokens] or math.nan for tokens in sorted(steps))
    assert 1.0 < math.log(middle / small) / math.log(32_760 / 1_560) < 1.5
    assert 1.7 < math.log(large / middle) / math.log(111_600 / 32_760) < 2.0


def test_an_upright_video_costs_what_a_wide_one_does() -> None:
    wide, upright = plan_shapes(replace(FP8, shapes=(PUBLISHED, VideoShape(832, 480, 81)))).rows
    assert (wide.shape.width, upright.shape.width) == (832, 480)
    different = {"shape"}
    assert wide.model_dump(exclude=different) == upright.model_dump(exclude=different)


def test_the_usual_shapes() -> None:
    sizes = {(shape.width, shape.height) for shape in USUAL_SHAPES}
    assert sizes == {(832, 480), (480, 832), (1280, 720), (720, 1280)}
    assert {shape.num_frames for shape in USUAL_SHAPES} == {1, 17, 49, 81, 121}
    assert len(USUAL_SHAPES) == 20


@pytest.mark.parametrize(("recipe", "fits"), [("bf16", False), ("none", True)])
def test_what_does_not_fit_says_why(recipe: str, fits: bool) -> None:
    """720p for 10 s (16 a second) with the text encoder in bf16 on 16 GB, and without it."""
    spec = replace(FP8, targets=("rtx4080",), text_encoder_recipe=recipe, shapes=(LONG,))
    report = plan_shapes(spec)
    (row,) = report.rows
    video = row.targets["rtx4080"]
    assert video.fits is fits
    assert bool(video.why) is not fits
    if video.why:
        assert "rtx4080 has 17.2 GB" in video.why
        assert "text encoder 9.3 GB, scratch" in video.why


def test_a_target_without_rates_has_no_times() -> None:
    records = shipped_records("FastWan-QAD-FP8-1.3B", "fp8", "none")
    (row,) = report_of(records, PlanSpec(targets=("a100",), shapes=(PUBLISHED,))).rows
    video = row.targets["a100"]
    assert (video.step_ms, video.video_ms, video.fits, video.why) == (None, None, None, "")
    assert row.device_bytes.total > 3e9


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"targets": ("rtx5090", "rtx4090")}, "--target"),
        ({"attention": "fp8", "targets": ("a100",), "model": "Wan2.1-T2V-1.3B"}, "--attention"),
        ({"attention": "native", "fusion": "gelu"}, "--model, --attention, --fusion"),
    ],
)
def test_a_pair_that_cannot_be_built_is_refused(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(BadInput) as refused:
        plan_shapes(replace(PlanSpec(shapes=(PUBLISHED,)), **changes))
    assert refused.value.where == where
    assert "one of" in str(refused.value)


@pytest.mark.parametrize("text", ["832x480", "832x480x80", "832x481x81", "axbxc", "8x8x1", ""])
def test_a_text_that_is_no_shape_is_refused(text: str) -> None:
    assert parse_shape("832x480x81") == PUBLISHED
    with pytest.raises(BadInput):
        parse_shape(text)


@pytest.mark.trt
def test_records_whose_sizes_are_the_models_too_are_refused(tiny_bundle: Path) -> None:
    records = BuiltRecords.of(open_bundle(tiny_bundle))
    built = records.manifest.onnx.model.shape
    assert reshaped(records, built) is records
    with pytest.raises(BadInput, match="is a size of the model too"):
        reshaped(records, PUBLISHED)


@pytest.mark.parametrize("cut", [0, 10, 2000])
def test_damaged_records_are_refused(nvfp4: BuiltRecords, cut: int) -> None:
    whole = nvfp4.packed()
    assert unpacked(whole, "file") == nvfp4
    with pytest.raises(BadInput, match="cannot be read"):
        unpacked(whole[:cut], "file")


def test_auto_takes_the_last_fusion_on_record() -> None:
    report = plan_shapes(replace(PlanSpec(), shapes=(PUBLISHED,)))
    kept = [f for m, a, f in SHIPPED if (m, a) == ("FastWan-QAD-1.3B", "sage3")]
    assert report.fusion == max(kept, key=list(FUSIONS).index)


def test_the_command_prints_a_table_and_its_json(
    validator: Callable[[str], Draft202012Validator], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    line = ["plan", "--model", FP8.model, "--target", "rtx4080", "--shape", "1280x720x161"]
    table = CliRunner().invoke(main, line)
    assert table.exit_code == 0, table.output
    assert "1280x720x161" in table.output
    assert "…" not in table.output
    printed = CliRunner().invoke(main, [*line, "--json"])
    report = json.loads(printed.output)
    validator("plan").validate(report)
    assert report["rows"][0]["targets"]["rtx4080"]["fits"] is False
    assert CliRunner().invoke(main, ["plan", "--shape", "1x1x1"]).exit_code == 2


def test_the_page_shows_what_the_command_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    root = checkout_root()
    if root is None:
        pytest.skip("not a source checkout")
    monkeypatch.setenv("COLUMNS", "80")
    text = Path(root, "docs", "shapes.md").read_text()
    block = r"```bash\nfastwan-export (plan[^\n]*)\n```\n\n```text\n(.*?)```"
    blocks = re.findall(block, text, re.DOTALL)
    assert len(blocks) == 2
    for line, shown in blocks:
        printed = CliRunner().invoke(main, shlex.split(line)).output
        assert "\n".join(map(str.rstrip, printed.splitlines())) == shown.rstrip("\n")
