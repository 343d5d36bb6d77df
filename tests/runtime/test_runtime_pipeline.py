"""The pipeline and `generate` on a fake bundle: reproducible, strict, called like diffusers."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto
from PIL import Image

from fastwan.bundle import open_bundle
from fastwan.cli import main
from fastwan.errors import BadInput, EnvironmentLacks, VerificationFailed
from fastwan.manifest import MANIFEST, SCHEMA_VERSION
from fastwan.runtime.device import choice as device
from fastwan.runtime.generate import generate
from fastwan.runtime.pipeline import FastWanPipeline
from fastwan.runtime.report import GenerateReport


@pytest.fixture
def pipe(bundle: Any) -> FastWanPipeline:
    return FastWanPipeline.from_bundle(bundle.root, "cpu")


def test_same_seed_same_video_other_seed_other_video(pipe: FastWanPipeline) -> None:
    first, again, other = (
        pipe("red fox", seed=seed, output_type="uint8").frames for seed in (7, 7, 8)
    )
    assert first.shape == (1, 9, 16, 32, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert first.std() > 1


def test_prompt_matters_and_equals_its_embeddings(pipe: FastWanPipeline) -> None:
    fox = pipe("red fox", output_type="latent").frames
    assert not torch.equal(fox, pipe("a", output_type="latent").frames)
    embeds = pipe.embed("red fox")
    torch.testing.assert_close(
        pipe(prompt_embeds=embeds, output_type="latent").frames, fox, rtol=0, atol=0
    )
    # The three true rows alone are padded with zeros again.
    rows = torch.from_numpy(embeds[:, :3].astype(np.float32))
    torch.testing.assert_close(
        pipe(prompt_embeds=rows, output_type="latent").frames, fox, rtol=0, atol=0
    )


def test_a_generator_is_the_seed_it_was_made_with(pipe: FastWanPipeline) -> None:
    generator = torch.Generator("cpu").manual_seed(7)
    np.testing.assert_array_equal(pipe("a", generator=generator).frames, pipe("a", seed=7).frames)
    # A generator moves on, as in diffusers.
    assert (pipe("a", generator=generator).frames != pipe("a", seed=7).frames).any()


@pytest.mark.parametrize("float_type", [TensorProto.BFLOAT16, TensorProto.FLOAT])
@pytest.mark.parametrize("timestep_type", [TensorProto.FLOAT, TensorProto.INT64])
def test_graph_dtypes_are_read_from_the_graph(
    make_bundle: Callable, float_type: int, timestep_type: int
) -> None:
    made = make_bundle(float_type=float_type, timestep_type=timestep_type)
    latents = FastWanPipeline.from_bundle(made.root, "cpu")("red fox", output_type="latent").frames
    assert torch.isfinite(latents).all()
    assert latents.std() > 0.1


@pytest.mark.parametrize(
    ("sampler", "timesteps"), [("unipc", [999, 857, 599]), ("dmd", [1000, 757, 522])]
)
def test_callback_is_called_like_diffusers(
    make_bundle: Callable, sampler: str, timesteps: list[int]
) -> None:
    pipe = FastWanPipeline.from_bundle(make_bundle(sampler=sampler).root, "cpu")
    seen: list[tuple[Any, int, int, list[str]]] = []

    def callback(*args: Any) -> dict[str, Any]:
        who, step, timestep, kwargs = args
        seen.append((who, step, timestep, list(kwargs)))
        assert kwargs["latents"].shape == (1, 16, 3, 2, 4)
        return kwargs

    frames = pipe("a", callback_on_step_end=callback).frames
    assert seen == [(pipe, i, timestep, ["latents"]) for i, timestep in enumerate(timesteps)]
    np.testing.assert_array_equal(frames, pipe("a").frames)


@pytest.mark.parametrize("step", [0, 1, 2])
def test_callback_may_replace_latents(pipe: FastWanPipeline, step: int) -> None:
    def zero(_pipe: Any, index: int, _t: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {"latents": kwargs["latents"] * 0} if index == step else {}

    replaced = pipe("a", output_type="latent", callback_on_step_end=zero).frames
    assert not torch.equal(replaced, pipe("a", output_type="latent").frames)
    if step == 2:
        assert not replaced.any()


def test_callback_that_returns_nothing_or_a_wrong_shape(pipe: FastWanPipeline) -> None:
    pipe("a", callback_on_step_end=lambda *_: None)
    with pytest.raises(BadInput, match=r"latents of the callback have shape \[1, 2\]"):
        pipe("a", callback_on_step_end=lambda *_: {"latents": torch.zeros(1, 2)})


def test_an_exception_in_the_callback_cancels_and_leaves_the_pipeline_usable(
    pipe: FastWanPipeline,
) -> None:
    def cancel(*_: Any) -> None:
        raise KeyboardInterrupt

    before = pipe("a").frames
    with pytest.raises(KeyboardInterrupt):
        pipe("a", callback_on_step_end=cancel)
    np.testing.assert_array_equal(pipe("a").frames, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 32}, "height 32 was asked for, the bundle makes 16.*--height 32"),
        ({"width": 16}, "width 16"),
        ({"num_frames": 13}, "num_frames 13 .*--num-frames 13"),
        ({"output_type": "gif"}, "output_type"),
        ({"sampler": "euler"}, "unipc, dmd"),
        ({"seed": -1}, "seed -1"),
        ({"prompt_embeds": np.zeros((1, 6, 8), np.float32)}, "either prompt or prompt_embeds"),
        ({"latents": torch.zeros(1, 16, 3, 2, 5)}, r"latents have shape \[1, 16, 3, 2, 5\]"),
        ({"callback_on_step_end_tensor_inputs": ["image"]}, "image"),
    ],
)
def test_what_the_bundle_cannot_serve_is_refused(
    pipe: FastWanPipeline, arguments: dict[str, Any], message: str
) -> None:
    pipe("a", height=16, width=32, num_frames=9, latents=torch.zeros(1, 16, 3, 2, 4))
    with pytest.raises(BadInput, match=message):
        pipe("a", **arguments)


def test_embeddings_of_another_width_are_refused(pipe: FastWanPipeline) -> None:
    with pytest.raises(BadInput, match="9 channels, the model wants 8"):
        pipe(prompt_embeds=np.zeros((1, 6, 9), np.float32))


def test_graphs_of_another_shape_than_the_manifest_are_refused(make_bundle: Callable) -> None:
    made = make_bundle(latents=(1, 16, 3, 2, 6))
    with pytest.raises(BadInput, match="the manifest says"):
        FastWanPipeline.from_bundle(made.root, "cpu")("a")


def test_samplers_differ_and_the_bundle_names_the_default(make_bundle: Callable) -> None:
    unipc = FastWanPipeline.from_bundle(make_bundle("u", sampler="unipc").root, "cpu")
    dmd = FastWanPipeline.from_bundle(make_bundle("d", sampler="dmd").root, "cpu")
    assert not torch.equal(*(p("a", output_type="latent").frames for p in (unipc, dmd)))
    torch.testing.assert_close(
        unipc("a", sampler="dmd", output_type="latent").frames,
        dmd("a", output_type="latent").frames,
        rtol=0,
        atol=0,
    )


def test_auto_without_a_gpu_runs_on_the_cpu_and_says_so(
    bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "cuda_device_count", lambda: 0)
    result = FastWanPipeline.from_bundle(bundle.root)("a")
    assert result.device == "cpu"
    assert "no CUDA device is visible" in result.note
    assert FastWanPipeline.from_bundle(bundle.root, "cpu")("a").note == ""


@pytest.mark.parametrize(
    ("count", "fault", "message"),
    [
        (0, "", "no CUDA device"),
        (0, "NVIDIA's driver does not start: CUDA error 803", "error 803.*driver 580"),
        (1, "NVIDIA's driver knows CUDA 12.4, this needs 13.0", "knows CUDA 12.4.*driver 580"),
        (1, "", "cuda.bindings.*install"),
    ],
)
def test_a_gpu_that_is_there_is_used_or_the_call_fails(
    bundle: Any, monkeypatch: pytest.MonkeyPatch, count: int, fault: str, message: str
) -> None:
    monkeypatch.setattr(device, "cuda_device_count", lambda: count)
    monkeypatch.setattr(device, "driver_fault", lambda: fault)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(EnvironmentLacks, match=message) as lacks:
        FastWanPipeline.from_bundle(bundle.root, "cuda")
    assert "ask for the CPU reference" not in str(lacks.value)
    if count or fault:
        with pytest.raises(EnvironmentLacks, match=f"{message}.*--device cpu"):
            FastWanPipeline.from_bundle(bundle.root, "auto")
    else:
        assert FastWanPipeline.from_bundle(bundle.root, "auto").choice.name == "cpu"
    assert FastWanPipeline.from_bundle(bundle.root, "cpu").choice.name == "cpu"


def test_a_bundle_of_an_older_schema_is_refused_in_one_line(bundle: Any) -> None:
    path = bundle.root / MANIFEST
    fields = json.loads(path.read_text())
    assert open_bundle(bundle.root).manifest.schema_version == SCHEMA_VERSION
    path.write_text(json.dumps({**fields, "schema_version": 1}))
    done = CliRunner().invoke(main, ["bench", str(bundle.root), "--device", "null"])
    assert done.exit_code == 2
    (line,) = done.stderr.strip().splitlines()
    assert f"schema version 1, this tool reads {SCHEMA_VERSION}" in line
    assert "build the bundle again" in line


def test_an_unknown_device_is_refused(bundle: Any) -> None:
    with pytest.raises(BadInput, match="one of auto, cpu, cuda, emulated"):
        FastWanPipeline.from_bundle(bundle.root, "tpu")


def test_generate_writes_the_pipelines_video_and_tells_about_it(
    bundle: Any, pipe: FastWanPipeline, tmp_path: Path
) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    result = generate(
        bundle.root,
        "red fox",
        tmp_path / "out.mp4",
        seed=7,
        device="cpu",
        frames_dir=tmp_path / "frames",
    )
    assert GenerateReport.model_validate_json(result.to_json()) == result
    (made,) = result.videos
    video = pipe("red fox", seed=7, output_type="uint8").frames[0]
    assert made.frames_sha256 == hashlib.sha256(video.tobytes()).hexdigest()
    assert made.frame_count == 9
    assert result.runtime_cache == "unused"
    assert (tmp_path / "out.mp4").stat().st_size > 0
    np.testing.assert_array_equal(np.asarray(Image.open(str(made.first_frame))), video[0])
    assert result.labels["videos.*.seconds"] == "measured"
    steps = ["step_0", "step_1", "step_2"]
    decoding = ["decode", "first_frame", "write", "total"]
    begun = ["load", "text", "noise", "text_kv", *steps]
    assert list(made.seconds) == [*begun, *decoding]
    before = sum(made.seconds[name] for name in begun)
    assert before < made.seconds["first_frame"] < made.seconds["total"]
    assert (result.device, made.sampler, made.seed) == ("cpu", "unipc", 7)


@pytest.mark.parametrize("name", ["video.mp4", "frames"])
def test_same_seed_gives_the_same_files(bundle: Any, tmp_path: Path, name: str) -> None:
    if name == "video.mp4":
        pytest.importorskip("av", reason="PyAV is not installed")
    files = []
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        generate(bundle.root, "a fox", tmp_path / folder / name, seed=seed, device="cpu")
        written = sorted((tmp_path / folder).rglob("*"))
        files.append([p.read_bytes() for p in written if p.is_file()])
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_generate_refuses_a_tampered_bundle_and_writes_nothing(bundle: Any, tmp_path: Path) -> None:
    generate(bundle.root, "a", tmp_path / "good" / "frames", device="cpu")
    path = bundle.onnx / "decoder.cpu.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(VerificationFailed, match=r"decoder\.cpu\.onnx"):
        generate(bundle.root, "a", tmp_path / "bad" / "frames", device="cpu")
    assert not (tmp_path / "bad").exists()


def test_generate_finds_an_unusable_output_before_it_runs(bundle: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("kept")
    # No graph of this bundle can be run: the output has to be refused first.
    for path in bundle.onnx.glob("*.onnx"):
        path.unlink()
    with pytest.raises(BadInput, match="was not written there"):
        generate(bundle.root, "a", tmp_path / "mine", device="cpu")
    with pytest.raises(BadInput, match="file is missing"):
        generate(bundle.root, "a", tmp_path / "new", device="cpu")
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="output cannot be written"):
        generate(bundle.root, "a", tmp_path / "file" / "out", device="cpu")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "kept"


def test_generate_says_on_stderr_that_auto_fell_to_the_cpu(
    bundle: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(device, "cuda_device_count", lambda: 0)
    result = generate(bundle.root, "a", tmp_path / "frames")
    captured = capsys.readouterr()
    assert "no CUDA device is visible" in captured.err
    assert captured.out == ""
    assert result.note


class Recorder:
    """A `Progress` that writes down what it is told."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.counts: dict[str, int] = {}

    def start(self, stage: str, total: int = 0, unit: str = "") -> None:
        self.stages.append(f"{stage} {total} {unit}".strip())
        self.counts[stage] = 0
        self._stage = stage

    def advance(self, amount: int = 1, note: str = "") -> None:
        self.counts[self._stage] += amount

    def finish(self, note: str = "") -> None:
        pass


def test_progress_counts_steps_and_frames(pipe: FastWanPipeline) -> None:
    recorder = Recorder()
    pipe("a", progress=recorder)
    assert recorder.stages == ["text 0", "denoise 3 steps", "decode 9 frames"]
    assert recorder.counts == {"text": 0, "denoise": 3, "decode": 9}


def test_repeated_videos_are_measured_one_by_one_and_written_once(
    bundle: Any, tmp_path: Path
) -> None:
    made = generate(bundle.root, "a fox", tmp_path / "out", device="cpu", warmup=1, repeat=2)
    (result,) = made.videos
    assert len(result.runs) == 2
    # The prompt is encoded in the first video only.
    assert all("decode" in run and run["text"] < 1 for run in result.runs)
    once = generate(bundle.root, "a fox", tmp_path / "once", device="cpu")
    assert result.frames_sha256 == once.videos[0].frames_sha256
    assert len(list((tmp_path / "out").glob("*.png"))) == 9
    with pytest.raises(BadInput, match="0 is not within 1"):
        generate(bundle.root, "a", tmp_path / "none", device="cpu", repeat=0)


def test_several_prompts_number_their_outputs(bundle: Any, tmp_path: Path) -> None:
    result = generate(bundle.root, ["a", "red fox"], tmp_path / "out", device="cpu")
    videos = result.videos
    assert [video.prompt for video in videos] == ["a", "red fox"]
    assert [Path(str(video.frames_dir)).name for video in videos] == ["out_0", "out_1"]
    for video, prompt in zip(videos, ("a", "red fox"), strict=True):
        alone = generate(bundle.root, prompt, tmp_path / "alone", device="cpu")
        assert video.frames_sha256 == alone.videos[0].frames_sha256


def test_the_memory_of_a_device_is_planned_and_reported_without_one(
    bundle: Any, tmp_path: Path
) -> None:
    made = generate(bundle.root, "a", tmp_path / "out", device="cpu")
    memory = made.device_bytes
    assert memory is not None
    assert made.labels["device_bytes"] == "predicted"
    assert memory.total == memory.weights + memory.scratch + memory.arena + memory.fixed
