"""``bench``: exact counts without a GPU, summaries and baselines, measured stages on a device."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fastwan.cli import main
from fastwan.errors import BadInput, SlowerThanBaseline
from fastwan.quality import bench as module
from fastwan.quality.bench import bench, compare, figures, render, summarize
from fastwan.runtime.device import choice as device

FRAMES = 9 * 16 * 32 * 3
LATENTS = 16 * 3 * 2 * 4 * 4


def test_counts_of_one_video_are_exact(bundle: Any) -> None:
    report = bench(bundle.root, device="null")
    assert json.loads(json.dumps(report)) == report
    assert (report["graph_launches"], report["allocations_in_loop"]) == (1, 0)
    assert (report["host_syncs_in_loop"], report["races"]) == (0, 0)
    assert (report["bytes_to_host"], report["bytes_to_device"]) == (FRAMES, LATENTS)
    # 3 transformers and 3 decoders, a cast for each, a sum a step, 1 + 3 copies, 2 memories.
    kinds = {"engine": 6, "region": 0, "combine": 3, "cast": 6, "copy": 4, "zero": 2}
    assert report["enqueues_by_kind"] == kinds
    assert report["enqueues"] == sum(kinds.values())
    assert report["device_bytes"] == report["memory"]["total"]
    assert report["times"] is None
    assert "no times" in render(report)


def test_dmd_takes_two_noises_more(bundle: Any) -> None:
    report = bench(bundle.root, device="null", sampler="dmd")
    assert report["bytes_to_device"] == 3 * LATENTS
    assert report["enqueues_by_kind"]["copy"] == 6


def test_auto_without_a_gpu_counts_and_says_so(
    bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "cuda_device_count", lambda: 0)
    assert bench(bundle.root)["note"] == "no CUDA device is visible: exact counts, no times"


def test_stages_are_summed_up_by_rank() -> None:
    runs = [{"decode": ms / 1e3} for ms in (5.0, 1.0, 3.0, 2.0, 4.0)]
    assert summarize(runs) == {
        "decode": {"min_ms": 1.0, "median_ms": 3.0, "p95_ms": pytest.approx(5.0)}
    }
    twenty = [{"x": ms / 1e3} for ms in range(1, 21)]
    assert summarize(twenty)["x"]["p95_ms"] == 19.0


def test_a_baseline_is_held_stage_by_stage(bundle: Any) -> None:
    times = {"decode": {"min_ms": 9.0, "median_ms": 10.0, "p95_ms": 11.0}}
    baseline = {**bench(bundle.root, device="null"), "times": times}
    at_limit = {"decode": {**times["decode"], "median_ms": 10.5}}
    beyond = {"decode": {**times["decode"], "median_ms": 10.51}}
    assert figures(baseline)["decode median_ms"] == 10.0
    compare({**baseline, "times": at_limit}, baseline, 0.05)
    with pytest.raises(SlowerThanBaseline, match=r"decode median_ms 10\.51 instead of 10"):
        compare({**baseline, "times": beyond}, baseline, 0.05)
    with pytest.raises(SlowerThanBaseline, match="allocations_in_loop 1 instead of 0"):
        compare({**baseline, "allocations_in_loop": 1}, baseline, 0.05)
    with pytest.raises(BadInput, match="baseline has device null, this run H200"):
        compare({**baseline, "device": "H200"}, baseline, 0.05)


def test_the_command_prints_one_object_and_exits_5_beyond_a_baseline(
    bundle: Any, tmp_path: Path
) -> None:
    arguments = ["bench", str(bundle.root), "--device", "null", "--json"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    path = tmp_path / "baseline.json"
    path.write_text(done.stdout)
    assert CliRunner().invoke(main, [*arguments, "--baseline", str(path)]).exit_code == 0
    path.write_text(json.dumps({**report, "enqueues": report["enqueues"] / 2}))
    worse = CliRunner().invoke(main, [*arguments, "--baseline", str(path)])
    assert worse.exit_code == 5
    assert "enqueues 21 instead of 10.5" in worse.stderr
    path.write_text("nonsense")
    assert CliRunner().invoke(main, [*arguments, "--baseline", str(path)]).exit_code == 2


def test_stages_are_measured_on_a_device(
    bundle: Any, host_device: Any, host_platform: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(host_device, "milliseconds", lambda _begin, _end: float(next(clock)))
    monkeypatch.setattr(device, "cuda_device_count", lambda: 1)
    monkeypatch.setattr(module, "cuda_platform", lambda _bundle: host_platform(host_device))
    report = bench(bundle.root, runs=2, warmup=1, prompt="red fox")
    assert report["device"] == "NULL device"
    assert report["runtime_cache"] == "unused"
    steps = ["step_0", "step_1", "step_2"]
    assert list(report["times"]) == ["text", "text_kv", "video", *steps, "decode", "copy", "total"]
    # The first video is not counted: its five stages took 0 .. 4.
    assert report["times"]["step_0"] == {"min_ms": 5.0, "median_ms": 7.5, "p95_ms": 10.0}
    assert sum(call.kind == "launch" for call in host_device.calls) == 3
    # Every video pays for its text; its second profile was run once more, before the first.
    names = [call.name for call in host_device.calls if call.kind == "engine"]
    assert names.count("text_kv") + 1 == names.count("text_encoder")
    plan = report["memory"]
    assert report["memory_peak_bytes"] == plan["scratch"] + plan["arena"] + plan["fixed"]
    assert "after warm-up" in render(report)
