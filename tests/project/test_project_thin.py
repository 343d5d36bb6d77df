"""Installs with few extras: what they do without the others' packages, and what they say."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastwan.install import how_to_install
from fastwan.runtime.pipeline import FastWanPipeline
from testkit.absent import absent_without, run_without

PROMPT = "A red fox walks through fresh snow"

PLAY = """
import hashlib
from fastwan.runtime.pipeline import FastWanPipeline

with FastWanPipeline.from_bundle(sys.argv[1], "cpu") as pipe:
    made = pipe(sys.argv[2], output_type="uint8")
    print(json.dumps(hashlib.sha256(made.frames.tobytes()).hexdigest()))
    seen = []
    def keep(pipe, step, timestep, given):
        seen.append(type(given["latents"]).__module__)
        return given
    pipe(sys.argv[2], output_type="latent", callback_on_step_end=keep)
    print(json.dumps([str(pipe.device), str(pipe.dtype), *seen]))
    try:
        pipe(sys.argv[2], output_type="pt")
    except Exception as error:
        print(json.dumps(str(error)))
"""

PLAY_NULL = """
from pathlib import Path
from fastwan.bundle import open_bundle
from fastwan.runtime.device.choice import DeviceChoice
from fastwan.runtime.device.components import DeviceComponents
from fastwan.runtime.device.null import NullDevice
from fastwan.runtime.device.platforms import null_platform
from fastwan.runtime.generate import generate
from fastwan.runtime.pipeline import FastWanPipeline

bundle, device = open_bundle(sys.argv[1]), NullDevice()
choice = DeviceChoice("cuda")
opened = lambda *_: (choice, DeviceComponents(bundle, null_platform(bundle, device)))
import fastwan.runtime.pipeline as pipeline
pipeline.open_components = opened
report = generate(bundle.root, sys.argv[2], Path("video.mp4"), device="cuda")
print(json.dumps([report.videos[0].frame_count, sum(c.kind == "launch" for c in device.calls)]))
"""

COMMANDS = """
import contextlib, io
from fastwan.cli import main

for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words)
        except SystemExit as stop:
            code = stop.code or 0
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


@pytest.mark.trt
def test_the_extra_cpu_plays_what_the_whole_install_plays(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    absent = absent_without("cpu")
    assert {"torch", "modelopt", "onnxscript", "polygraphy", "matplotlib"} <= set(absent)
    digest, told, refused, loaded = run_without(
        absent, PLAY, str(tiny_bundle), PROMPT, cwd=tmp_path
    )
    whole = FastWanPipeline.from_bundle(tiny_bundle, "cpu")(PROMPT, output_type="uint8")
    assert digest == hashlib.sha256(whole.frames.tobytes()).hexdigest()
    assert told[:2] == ["cpu", "bfloat16"]
    assert set(told[2:]) == {"numpy"}
    assert len(told) > 3
    assert "has not imported torch" in refused
    assert "onnxruntime" in loaded
    assert not set(loaded) & set(absent)


@pytest.mark.trt
def test_the_extra_gpu_plays_without_torch(tiny_bundle: Path, tmp_path: Path) -> None:
    """On the device that only records: the loaders of a GPU's libraries are all that is left."""
    absent = absent_without("gpu")
    assert {"torch", "modelopt", "onnxscript", "onnxruntime"} <= set(absent)
    (frames, launched), loaded = run_without(
        absent, PLAY_NULL, str(tiny_bundle), PROMPT, cwd=tmp_path
    )
    assert frames == 9
    assert launched == 1
    assert not set(loaded) & set(absent)
    assert (tmp_path / "video.mp4").stat().st_size > 0


@pytest.mark.trt
def test_without_extras_bundles_are_looked_at(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = str(tiny_bundle)
    lines = (
        ["inspect", bundle],
        ["compare", "--static", bundle, bundle],
        ["bench", bundle, "--device", "null", "--json"],
        ["plan", "--json"],
        ["doctor", "--json"],
        ["cache", "ls"],
    )
    absent = absent_without()
    *ran, loaded = run_without(absent, COMMANDS, json.dumps(lines), cwd=tmp_path)
    assert [(code, bool(out)) for code, out, _ in ran] == [(0, True)] * len(lines), ran
    assert not set(loaded) & set(absent)


@pytest.mark.trt
def test_a_command_says_in_a_line_which_extra_it_lacks(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # which the advice depends on
    bundle = str(tiny_bundle)
    lines = {
        "cpu": [["generate", bundle, PROMPT, "--device", "cpu", "-o", "x.mp4"]],
        "report": [
            ["inspect", bundle, "--report", "report"],
            ["compare", "--static", bundle, bundle, "--report", "report"],
        ],
        "build": [
            ["build-engine", "--checkpoint", "owner/name", "-o", "made"],
            ["compare", bundle, bundle],
            ["gate", bundle, "--against", "baseline.json"],
            ["goldens", "make", bundle, "goldens"],
            ["make-checkpoint", "made", "--size", "tiny"],
            ["selftest", bundle, "-o", "made"],
            ["swap-weights", bundle, "--checkpoint", "owner/name", "-o", "made"],
            ["verify", bundle],
        ],
    }
    flat = [(extra, words) for extra, each in lines.items() for words in each]
    *ran, _ = run_without(
        absent_without(), COMMANDS, json.dumps([words for _, words in flat]), cwd=tmp_path
    )
    assert len(ran) == len(flat)
    for (extra, words), (code, _, err) in zip(flat, ran, strict=True):
        assert code == 3, (words, err)
        errors = [line for line in err.splitlines() if line.startswith("error")]
        assert len(errors) == 1
        assert errors[0].endswith(how_to_install(extra)), words
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.trt
def test_an_environment_with_one_extra_plays_the_same(
    tiny_bundle: Path, root: Path, tmp_path: Path
) -> None:
    """Installs from a package index: the packages that pip brings are all there are."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    python = venv / "bin" / "python"
    pins = ["-c", str(root / "constraints.txt")]
    subprocess.run(
        [str(python), "-m", "pip", "install", "-q", *pins, f"{root}[cpu]"], check=True, cwd=tmp_path
    )
    shutil.copytree(tiny_bundle, tmp_path / "bundle")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    words = ["generate", "bundle", PROMPT, "--device", "cpu", "-o", "x.mp4", "--json"]
    done = subprocess.run(
        [str(venv / "bin" / "fastwan-export"), *words],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    whole = FastWanPipeline.from_bundle(tiny_bundle, "cpu")(PROMPT, output_type="uint8")
    (video,) = json.loads(done.stdout)["videos"]
    frames = hashlib.sha256()
    for frame in whole.frames[0]:
        frames.update(frame.tobytes())
    assert video["frames_sha256"] == frames.hexdigest()
    listed = subprocess.run(
        [str(python), "-m", "pip", "list", "--format=json"], capture_output=True, check=True
    )
    names = {each["name"].lower() for each in json.loads(listed.stdout)}
    assert "onnxruntime" in names
    assert not names & {"torch", "nvidia-modelopt", "onnxscript", "polygraphy", "matplotlib"}
