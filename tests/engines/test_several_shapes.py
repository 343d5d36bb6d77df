"""One bundle of several shapes: what it shares, and that each is what it is alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fastwan.build import BuildSpec
from fastwan.build_shapes import build_bundle_of_shapes
from fastwan.bundle import Bundle, open_bundle
from fastwan.cache_folder import DIRECTORY_VARIABLE
from fastwan.cli import main
from fastwan.config import VideoShape
from fastwan.engines.layer_json import bundle_layers
from fastwan.errors import BadInput
from fastwan.manifest import LAYERS, MANIFEST
from fastwan.ownership import RECORD
from fastwan.progress import Quiet
from fastwan.quality.report import inspect_bundle
from fastwan.quality.verify.run import run_checks
from fastwan.quality.verify.subject import Subject
from fastwan.runtime.device.choice import DeviceChoice
from fastwan.runtime.device.components import DeviceComponents
from fastwan.runtime.device.platforms import null_platform
from fastwan.runtime.pipeline import FastWanPipeline
from fastwan.runtime.request import Request
from fastwan.shapes import shape_text
from fastwan.swap import SwapSpec, swap_weights

pytestmark = pytest.mark.trt

FIRST = VideoShape(height=64, width=64, num_frames=5)
WIDE = VideoShape(height=64, width=160, num_frames=9)
SHORT = VideoShape(height=64, width=160, num_frames=5)
SHAPES = (FIRST, WIDE, SHORT)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Builds of this module share what they have in common."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DIRECTORY_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def spec(tiny_checkpoint: Path) -> BuildSpec:
    components = ("dit", "decoder")
    return BuildSpec(str(tiny_checkpoint), Path(), components=components, shapes=SHAPES)


@pytest.fixture(scope="module")
def bundle(spec: BuildSpec, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return built(spec, tmp_path_factory.mktemp("several") / "bundle")


@pytest.fixture(scope="module")
def alone(spec: BuildSpec, tmp_path_factory: pytest.TempPathFactory) -> dict[VideoShape, Bundle]:
    """Bundles of one shape."""
    root = tmp_path_factory.mktemp("alone")
    return {
        shape: built(replace(spec, shapes=(shape,)), root / shape_text(shape)) for shape in SHAPES
    }


def built(spec: BuildSpec, folder: Path) -> Bundle:
    build_bundle_of_shapes(replace(spec, output=folder), Quiet())
    return open_bundle(folder)


def test_the_first_shape_has_the_files_of_its_bundle(
    bundle: Bundle, alone: dict[VideoShape, Bundle]
) -> None:
    one = alone[FIRST].manifest
    assert one.files.keys() > {LAYERS}
    assert {name: bundle.manifest.files.get(name) for name in one.files} == one.files
    left_out = {"files", "shapes", "build"}
    assert bundle.manifest.model_dump(exclude=left_out) == one.model_dump(exclude=left_out)
    # Of one shape nothing is written of others.
    assert "shapes" not in (alone[FIRST].root / MANIFEST).read_text()
    assert '"layers"' not in (alone[FIRST].root / MANIFEST).read_text()


def test_every_file_is_one_that_a_shape_reads(bundle: Bundle) -> None:
    on_disk = {
        path.relative_to(bundle.root).as_posix()
        for path in bundle.root.rglob("*")
        if path.is_file()
    }
    assert on_disk == {*bundle.manifest.files, MANIFEST, RECORD}
    read = set[str]().union(*(part.files for part in bundle.manifest.parts))
    assert on_disk - read == {MANIFEST, RECORD, "onnx/export.json"}


def test_weights_lie_once(bundle: Bundle) -> None:
    files = bundle.manifest.files
    for part in bundle.manifest.shapes:
        for name in ("dit", "text_kv", "time_tables"):
            own = f"dit.{shape_text(part.shape)}.data"
            assert part.onnx.graphs[name].data == (own, "dit.data")
            # Its rotary tables, and no more.
            assert files[f"onnx/{own}"].bytes < files["onnx/dit.data"].bytes / 4
        assert part.onnx.graphs["decoder"].data == ("decoder.data",)
        assert part.engines["text_kv"].file == "dit/text_kv.engine"
        assert part.engines["time_tables"].file == "dit/time_tables.engine"
    # The decoder does not know how long a video is.
    decoders = {part.engines["decoder"].file for part in bundle.manifest.shapes}
    assert decoders == {f"decoder/{shape_text(WIDE)}/decoder.engine"}


@pytest.mark.parametrize("shape", SHAPES, ids=shape_text)
def test_each_shape_is_what_it_is_alone(
    bundle: Bundle, alone: dict[VideoShape, Bundle], shape: VideoShape
) -> None:
    there, one = bundle.at(shape), alone[shape]
    assert bundle_layers(there) == bundle_layers(one)
    assert there.manifest.regions == one.manifest.regions
    for name, engine in one.manifest.engines.items():
        held = there.manifest.engines[name]
        assert held.model_copy(update={"file": engine.file}) == engine
        assert there.manifest.engine_record(held) == one.manifest.engine_record(engine)
    reports = [inspect_bundle(each) for each in (there, one)]
    assert reports[0].prediction == reports[1].prediction
    assert reports[0].device_bytes == reports[1].device_bytes
    assert reports[0].components == reports[1].components


@pytest.mark.parametrize("shape", [FIRST, WIDE], ids=shape_text)
def test_each_shape_passes_verify(bundle: Bundle, shape: VideoShape) -> None:
    names = ("engine_plan", "weights_bit_exact", "cpu_reference", "fp4_engines")
    report = run_checks(Subject(bundle.at(shape)), names)
    assert {check.name for check in report.checks} == {"integrity", *names}
    assert [check.name for check in report.checks if not check.passed] == []


def test_a_damaged_file_of_another_shape_fails_integrity(bundle: Bundle, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    for name in (*bundle.manifest.files, MANIFEST, RECORD):
        (whole / name).parent.mkdir(parents=True, exist_ok=True)
        (whole / name).write_bytes((bundle.root / name).read_bytes())
    assert run_checks(Subject(open_bundle(whole)), ()).checks[0].passed
    damaged = whole / f"onnx/dit.{shape_text(WIDE)}.data"
    damaged.write_bytes(b"\1" + damaged.read_bytes()[1:])
    failed = run_checks(Subject(open_bundle(whole)), ()).checks[0]
    assert not failed.passed
    assert damaged.name in failed.note


def test_a_call_makes_the_shape_that_it_asks_for(
    bundle: Bundle, alone: dict[VideoShape, Bundle]
) -> None:
    config = bundle.manifest.onnx.model.dit
    rows = np.random.default_rng(0).standard_normal((1, 7, config.text_dim), np.float32)
    with FastWanPipeline.from_bundle(bundle.root, "cpu") as pipe:
        assert f"also {shape_text(WIDE)}, {shape_text(SHORT)}" in repr(pipe)
        asked = pipe(prompt_embeds=rows, width=160, output_type="uint8").frames
        first = pipe(prompt_embeds=rows, output_type="uint8").frames
    made = {WIDE: asked, FIRST: first}
    for shape, frames in made.items():
        assert frames.shape[1:4] == (shape.num_frames, shape.height, shape.width)
        with FastWanPipeline.from_bundle(alone[shape].root, "cpu") as pipe:
            expected = pipe(prompt_embeds=rows, output_type="uint8").frames
        assert np.array_equal(frames, expected)
    with FastWanPipeline.from_bundle(bundle.root, "cpu", width=160, num_frames=5) as pipe:
        assert pipe.components.shape == SHORT


def test_a_device_holds_one_shape_at_a_time(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(other: Bundle, *_: object) -> tuple[DeviceChoice, DeviceComponents]:
        return DeviceChoice("cuda"), DeviceComponents(other, null_platform(other))

    for module in ("pipeline", "opened_shapes"):
        monkeypatch.setattr(f"fastwan.runtime.{module}.open_components", opened)
    pipe = FastWanPipeline.from_bundle(bundle.root, "cuda")
    text = np.zeros((1, 1, bundle.manifest.onnx.model.dit.text_dim), np.float32)
    first, wide = Request(prompt_embeds=text), Request(prompt_embeds=text, num_frames=9)
    before = pipe.components.session()  # type: ignore[attr-defined]
    list(pipe.frames(first))
    assert pipe.components.session() is before  # type: ignore[attr-defined]
    list(pipe.frames(wide))
    assert pipe.components.session() is not before  # type: ignore[attr-defined]
    pipe.close()


@pytest.mark.parametrize("command", ["inspect", "verify", "bench", "selftest"])
def test_a_shape_that_is_missing_is_refused(bundle: Bundle, command: str, tmp_path: Path) -> None:
    more = ["-o", str(tmp_path / "out")] if command == "selftest" else []
    words = [command, str(bundle.root), *more, "--shape", "64x64x9"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert all(shape_text(shape) in line for shape in SHAPES)


def test_generate_refuses_a_size_that_is_missing(bundle: Bundle, tmp_path: Path) -> None:
    words = [
        "generate",
        str(bundle.root),
        "a cat",
        "-o",
        str(tmp_path / "x.mp4"),
        "--device",
        "cpu",
    ]
    done = CliRunner().invoke(main, [*words, "--width", "96"])
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    assert "width 96 was asked for" in line
    assert all(shape_text(shape) in line for shape in SHAPES)
    # A size that it has gets as far as the text encoder, which this bundle lacks.
    done = CliRunner().invoke(main, [*words, "--width", "160"])
    assert "no text encoder" in done.stderr


def test_swapped_weights_are_those_of_every_shape(
    bundle: Bundle, spec: BuildSpec, tmp_path: Path
) -> None:
    swap_weights(SwapSpec(bundle.root, spec.checkpoint, tmp_path / "swapped"), Quiet())
    swapped = open_bundle(tmp_path / "swapped").manifest
    assert swapped.video_shapes == SHAPES
    assert swapped.files == bundle.manifest.files


def test_what_has_no_shape_or_two_is_refused(spec: BuildSpec, tmp_path: Path) -> None:
    text = replace(spec, components=("text_encoder",), output=tmp_path / "out")
    with pytest.raises(BadInput, match="no shape"):
        build_bundle_of_shapes(text, Quiet())
    many = [VideoShape(height=64, width=64, num_frames=1 + 4 * i) for i in range(33)]
    with pytest.raises(BadInput, match=r"33 shapes.*at most 32"):
        build_bundle_of_shapes(replace(spec, shapes=tuple(many), output=tmp_path / "out"), Quiet())
    assert not (tmp_path / "out").exists()
    with pytest.raises(BadInput, match="given twice"):
        replace(spec, height=64)
    assert replace(spec, shapes=(), height=64).height == 64


def test_weights_in_engines_are_held_once_a_shape(
    bundle: Bundle, spec: BuildSpec, tmp_path: Path
) -> None:
    inline = built(replace(spec, weights="inline", shapes=(FIRST, WIDE)), tmp_path / "inline")
    own = inspect_bundle(inline).shapes
    assert list(own) == [shape_text(FIRST), shape_text(WIDE)]
    dit = bundle.manifest.files["onnx/dit.data"].bytes
    assert own[shape_text(WIDE)] > inspect_bundle(bundle).shapes[shape_text(WIDE)] + dit / 4
