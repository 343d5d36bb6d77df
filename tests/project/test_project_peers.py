"""`scripts/compare_peers.py` with stand-ins that have the peers' command lines and no GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

ARGUMENTS = "import argparse\nparser = argparse.ArgumentParser()\n"

FASTVIDEO = {
    "fastvideo/__init__.py": "",
    "fastvideo/pipelines/__init__.py": "",
    "fastvideo/pipelines/stages/__init__.py": "",
    "fastvideo/pipelines/stages/text_encoding.py": (
        "class TextEncodingStage:\n    def forward(self, batch): return batch\n"
    ),
    "fastvideo/pipelines/stages/denoising.py": (
        "class DenoisingStage:\n    def forward(self, batch): return batch\n"
        "class DmdDenoisingStage(DenoisingStage):\n    pass\n"
    ),
    "fastvideo/pipelines/stages/decoding.py": (
        "class DecodingStage:\n    def forward(self, batch): return batch\n"
    ),
    # The workers of the real one are processes of their own.
    "fastvideo/worker.py": """
from fastvideo.pipelines.stages.decoding import DecodingStage
from fastvideo.pipelines.stages.denoising import DenoisingStage
from fastvideo.pipelines.stages.text_encoding import TextEncodingStage
for stage in (TextEncodingStage, TextEncodingStage, DenoisingStage, DecodingStage):
    stage().forward(None)
""",
    "examples/inference/optimizations/taehv.py": (
        "class TAEHV:\n    def decode_video(self, latents): return latents\n"
    ),
    "examples/inference/optimizations/FastWan_QAD_TAEHV.py": ARGUMENTS
    + """
import subprocess, sys
parser.add_argument("--model")
parser.add_argument("--distilled_model")
parser.add_argument("--infer_steps", type=int)
parser.add_argument("--warmups", type=int)
parser.add_argument("--benchmark-runs", type=int)
parser.add_argument("--taehv", action=argparse.BooleanOptionalAction, default=True)
parser.add_argument("--taehv_checkpoint")
args = parser.parse_args()
assert args.infer_steps == 3 and args.distilled_model == ""
for i in range(args.warmups + args.benchmark_runs):
    subprocess.run([sys.executable, "-m", "fastvideo.worker"], check=True)
    if args.taehv:
        from taehv import TAEHV
        TAEHV().decode_video(None)
    if i >= args.warmups:
        print(f"  run {i + 1 - args.warmups:02d}/{args.benchmark_runs}: 1.780s")
""",
}

TURBO = {
    "turbodiffusion/rcm/utils/umt5.py": (
        "class UMT5EncoderModel:\n    def __call__(self, text): return text\n"
    ),
    "turbodiffusion/rcm/networks/wan2pt1.py": (
        "class WanModel:\n    def forward(self): pass\n    def __call__(self): self.forward()\n"
    ),
    "turbodiffusion/rcm/tokenizers/wan2pt1.py": (
        "class Wan2pt1VAEInterface:\n    def decode(self, latents): return latents\n"
    ),
    "turbodiffusion/inference/modify_model.py": (
        "from rcm.networks.wan2pt1 import WanModel\ndef create_model(): return WanModel()\n"
    ),
    "turbodiffusion/inference/wan2.1_t2v_infer.py": ARGUMENTS
    + """
from modify_model import create_model
from rcm.tokenizers.wan2pt1 import Wan2pt1VAEInterface
from rcm.utils.umt5 import UMT5EncoderModel
for name in ("model", "dit_path", "vae_path", "text_encoder_path", "attention_type", "save_path",
             "prompt"):
    parser.add_argument(f"--{name}", required=True)
parser.add_argument("--num_steps", type=int, choices=[1, 2, 3, 4])
parser.add_argument("--num_frames", type=int)
parser.add_argument("--sla_topk", type=float)
parser.add_argument("--quant_linear", action="store_true")
if __name__ == "__main__":
    args = parser.parse_args()
    assert args.num_frames == 81 and args.quant_linear
    UMT5EncoderModel()(args.prompt)
    net = create_model()
    for _ in range(args.num_steps):
        net()
    Wan2pt1VAEInterface().decode(None)
""",
}

LIGHT = {
    "lightx2v/__init__.py": "",
    "lightx2v/models/runners/default_runner.py": (
        "class DefaultRunner:\n    def run_segment(self): pass\n"
        "    def run_vae_decoder(self, latents): return latents\n"
    ),
    "lightx2v/models/runners/wan/wan_runner.py": (
        "from lightx2v.models.runners.default_runner import DefaultRunner\n"
        "class WanRunner(DefaultRunner):\n    def run_text_encoder(self, text): return text\n"
    ),
    "lightx2v/infer.py": ARGUMENTS
    + """
import json
from lightx2v.models.runners.wan.wan_runner import WanRunner
for name in ("model_cls", "task", "model_path", "config_json", "prompt", "save_result_path"):
    parser.add_argument(f"--{name}", required=True)
if __name__ == "__main__":
    args = parser.parse_args()
    with open(args.config_json) as stream:
        config = json.load(stream)
    assert config["infer_steps"] == 4 and config["dit_quantized_ckpt"] == "fp4.safetensors"
    runner = WanRunner()
    runner.run_text_encoder(args.prompt)
    runner.run_segment()
    runner.run_vae_decoder(None)
""",
}

TREES = {"fastvideo-qad": FASTVIDEO, "turbodiffusion": TURBO, "lightx2v": LIGHT}
VALUES = {
    "fastvideo-qad": {"model": "FastVideo/FastWan-QAD-1.3B", "taehv_checkpoint": "taew2_1.pth"},
    "turbodiffusion": {"dit_path": "d.pth", "vae_path": "v.pth", "text_encoder_path": "t.pth"},
    "lightx2v": {"model_path": "wan", "dit_quantized_ckpt": "fp4.safetensors"},
}


PULL_REQUEST = {
    **{name: text for name, text in FASTVIDEO.items() if name.startswith("fastvideo/")},
    "examples/inference/optimizations/taehv.py": FASTVIDEO[
        "examples/inference/optimizations/taehv.py"
    ],
    "examples/inference/optimizations/benchmark_qad_wan2_1_1_3b.py": ARGUMENTS
    + """
import runpy, sys
sys.path.insert(0, ".")
from taehv import TAEHV
parser.add_argument("--mode", choices=["nvfp4_sa2", "fp8"], required=True)
parser.add_argument("--taehv-checkpoint", required=True)
args = parser.parse_args()
for i in range(5 + 20):
    runpy.run_module("fastvideo.worker", run_name="__main__")
    TAEHV().decode_video(None)
""",
}
ALONE = {
    "taehv.py": """
class TAEHV:
    def __init__(self, checkpoint_path): assert checkpoint_path.endswith("taew2_1.pth")
    def to(self, *places): return self
    def eval(self): return self
    def decode_video(self, latents, parallel, show_progress_bar):
        assert latents == (1, 21, 16, 60, 104) and parallel and not show_progress_bar
""",
    "torch.py": """
import contextlib
no_grad, float16 = contextlib.nullcontext, "float16"
class cuda:
    is_initialized = staticmethod(lambda: False)
def randn(*shape, **settings): return shape
""",
}


@pytest.fixture
def peers(tmp_path: Path) -> Path:
    """A peers file of three stand-ins; SA2 and FP8 of FastVideo and TAEHV alone are missing."""
    table = {}
    for name, tree in TREES.items():
        plant(tmp_path / name, tree)
        table[name] = {"folder": name, "python": sys.executable, **VALUES[name]}
    path = tmp_path / "peers.json"
    path.write_text(json.dumps(table))
    return path


def plant(folder: Path, tree: dict[str, str]) -> None:
    for file, text in tree.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def compare(root: Path, peers: Path, *more: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, str(root / "scripts" / "compare_peers.py"), "--peers", str(peers),
         "--runs", "2", "--warmup", "1", "-o", str(peers.parent / "table.json"), *more],
        capture_output=True, text=True,
    )  # fmt: skip
    return done.returncode, done.stderr


def rows_of(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    record = json.loads((folder / "table.json").read_text())
    assert record["kind"] == "measured"
    return {(row["system"], row["decoder"]): row for row in record["rows"]}


def test_what_is_installed_is_timed_and_what_is_not_is_a_gap(root: Path, peers: Path) -> None:
    code, said = compare(root, peers)
    assert code == 0, said
    rows = rows_of(peers.parent)
    measured = {key for key, row in rows.items() if not row["gap"]}
    assert measured == {
        ("fastvideo-qad", "own"), ("fastvideo-qad", "taehv"), ("turbodiffusion", "own"),
        ("lightx2v", "own"),
    }  # fmt: skip
    for key in measured:
        row = rows[key]
        assert row["runs"] == 2
        assert len(row["each_step"]) == row["steps"] == (3 if "fastvideo" in key[0] else 4)
        assert all(each > 0 for each in (row["text"], row["decode"], *row["each_step"]))
    assert rows["turbodiffusion", "own"]["steps_are"] == "each"
    assert rows["lightx2v", "own"]["steps_are"] == "mean of the loop"
    assert rows["fastvideo-qad", "own"]["total"] == 1780
    assert rows["fastvideo-qad", "own"]["copy"] is None
    assert rows["fastvideo-qad", "taehv"]["copy"] > 0
    gaps = {key: row["gap"] for key, row in rows.items() if row["gap"]}
    assert gaps["fastvideo-sa2", "taehv"].startswith("not installed")
    assert gaps["turbodiffusion", "taehv"].startswith("TAEHV is not installed")
    for key in gaps:
        numbers = ("text", "decode", "copy", "total")
        assert [rows[key][name] for name in numbers] == [None] * 4
        assert rows[key]["each_step"] == []


def test_rows_with_taehv_alone_and_of_the_pull_request_are_timed(
    root: Path, peers: Path, tmp_path: Path
) -> None:
    """The programs that FastVideo's main has not, and TAEHV beside another system's steps."""
    plant(tmp_path / "pull", PULL_REQUEST)
    plant(tmp_path / "alone", ALONE)
    python = tmp_path / "alone" / "python"
    python.write_text(
        f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{python.parent}" exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    (tmp_path / "taew2_1.pth").touch()
    table = {
        name: {"folder": "pull", "python": sys.executable, "taehv_checkpoint": "taew2_1.pth"}
        for name in ("fastvideo-sa2", "fastvideo-fp8")
    }
    table["turbodiffusion"] = json.loads(peers.read_text())["turbodiffusion"]
    table["taehv"] = {"python": "alone/python", "checkpoint": "taew2_1.pth"}
    peers.write_text(json.dumps(table))
    code, said = compare(root, peers)
    assert code == 0, said
    rows = rows_of(tmp_path)
    for name in ("fastvideo-sa2", "fastvideo-fp8"):
        row = rows[name, "taehv"]
        assert not row["gap"]
        assert min(row["text"], row["decode"], row["copy"], *row["each_step"]) > 0
    own, tiny = (rows["turbodiffusion", decoder] for decoder in ("own", "taehv"))
    assert not tiny["gap"]
    assert (tiny["text"], tiny["each_step"]) == (own["text"], own["each_step"])
    assert tiny["decode"] != own["decode"]
    assert tiny["total"] == pytest.approx(tiny["text"] + sum(tiny["each_step"]) + tiny["decode"])
    assert "TAEHV was timed alone" in tiny["total_is"]


def test_the_table_has_published_figures_apart(root: Path, peers: Path) -> None:
    assert compare(root, peers)[0] == 0
    page = (peers.parent / "table.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    assert lines[0].endswith("| total | published |")
    assert {line.count("|") for line in lines} == {10}
    (own,) = (each for each in lines if each.startswith("| FastVideo, FastWan-QAD-1.3B | own"))
    assert own.endswith("| 1,780.0 | - |")
    (tiny,) = (each for each in lines if each.startswith("| FastVideo, FastWan-QAD-1.3B | taehv"))
    assert "| 1,780.0 | 1.78 s on an RTX 5090" in tiny
    (gap,) = (each for each in lines if "FastWan-QAD-FP8-1.3B" in each)
    assert "| gap: not installed" in gap
    assert " | - | - | - | - | - | " in gap
    assert "3.4 s on an RTX 4090" in gap
    assert "- 6.91 s: FastVideo's chart" in page
    assert page.count(", read 20") == 6
    sources = [each for row in rows_of(peers.parent).values() for each in row["published"]]
    assert all(each["source"] and each["date"] for each in sources)


@pytest.mark.parametrize(
    ("file", "old", "new", "gap"),
    [
        ("turbodiffusion/inference/wan2.1_t2v_infer.py", "    net = create_model()\n",
         "    raise SystemExit('CUDA is required')\n", "status 1: CUDA is required"),
        ("turbodiffusion/inference/wan2.1_t2v_infer.py", "    Wan2pt1VAEInterface().decode(None)",
         "    pass", "timed as decode was not called"),
        ("turbodiffusion/inference/wan2.1_t2v_infer.py", "range(args.num_steps)",
         "range(args.num_steps - 1)", "other than 4 steps"),
        ("turbodiffusion/rcm/utils/umt5.py", "UMT5EncoderModel", "Renamed", "failed with exit"),
    ],
    ids=["it fails", "another decoder", "fewer steps", "another version"],
)  # fmt: skip
def test_a_system_that_cannot_be_timed_is_a_gap_with_its_reason(
    root: Path, peers: Path, file: str, old: str, new: str, gap: str
) -> None:
    only = {"turbodiffusion": json.loads(peers.read_text())["turbodiffusion"]}
    peers.write_text(json.dumps(only))
    assert compare(root, peers)[0] == 0
    path = peers.parent / "turbodiffusion" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert compare(root, peers)[0] == 1
    row = rows_of(peers.parent)["turbodiffusion", "own"]
    assert gap in row["gap"]
    assert row["total"] is None


def test_a_bundle_that_cannot_be_timed_is_a_gap(root: Path, peers: Path, tmp_path: Path) -> None:
    peers.write_text("{}")
    code, _ = compare(root, peers, "--bundle", str(tmp_path / "none"))
    assert code == 1
    row = rows_of(tmp_path)["fastwan-export", "taehv"]
    assert row["gap"].startswith("error: ")
    assert row["published"] == []


def test_an_unknown_system_is_refused(root: Path, peers: Path) -> None:
    peers.write_text('{"fastvideo": {"folder": "."}}')
    code, said = compare(root, peers)
    assert code == 2
    assert "unknown system 'fastvideo'; one of fastvideo-qad," in said


@pytest.fixture
def modules(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The modules that fill the table."""
    monkeypatch.syspath_prepend(str(root / "scripts"))
    import peer_runs
    import peer_table

    return peer_runs, peer_table


def test_medians_are_of_the_last_videos(modules: Any) -> None:
    runs, table = modules
    made = [
        {"text": [50.0], "step": [900.0, 900.0], "decode": [99.0]},
        *({"text": [5.0 + i], "step": [100.0, 90.0 + i], "decode": [20.0]} for i in range(3)),
    ]
    fields = runs.medians(made, [], 2, 3)
    assert (fields["text"], fields["each_step"], fields["decode"]) == (6.0, (100.0, 91.0), 20.0)
    assert (fields["total"], fields["total_is"]) == (217.0, "the sum of its parts")
    row = runs.Row("x", "x", "own", 2, **fields)
    composed = table.with_taehv(row, 7.5)
    assert (composed.decoder, composed.decode, composed.total) == ("taehv", 7.5, 204.5)
    with pytest.raises(runs.Missing, match="4 videos were timed and 5 asked for"):
        runs.medians(made, [], 2, 5)


def test_our_row_is_that_of_a_report_of_bench(modules: Any) -> None:
    _, table = modules
    names = {"text": 5.0, "text_kv": 1.0, "step_0": 350.0, "step_1": 351.0, "decode": 60.0,
             "total": 770.0}  # fmt: skip
    report: dict[str, Any] = {
        "bundle": {"model": "FastWan-QAD-1.3B", "versions": {"fastwan-export": "0.1"}},
        "covers": "a video", "note": "",
        "measurement": {
            "times": {name: {"median_ms": value} for name, value in names.items()},
            "runs": 20, "gpu_states": [None],
        },
    }  # fmt: skip
    row = table.ours(report, 3)
    assert (row.text, row.each_step, row.decode, row.total) == (6.0, (350.0, 351.0), 60.0, 770.0)
    gap = table.ours({**report, "measurement": None, "note": "no GPU"}, 3)
    assert (gap.gap, gap.total) == ("no times: no GPU", None)
    assert "gap" in asdict(gap)
