"""``bench``: exact counts without a GPU, summaries, and measured stages on a device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from fastwan.quality import bench as module
from fastwan.quality.bench import bench, summarize
from fastwan.quality.bench_report import BenchReport, render
from fastwan.runtime.device import choice as device
from fastwan.runtime.device.null import ENQUEUES, NullDevice
from fastwan.runtime.device.session import Platform
from testkit.host_device import HostDevice

FRAMES = 9 * 16 * 32 * 3
LATENTS = 16 * 3 * 2 * 4 * 4


def test_counts_of_one_video_are_exact(bundle: Any) -> None:
    report = bench(bundle.root, device="null")
    assert (report.graph_launches, report.allocations_in_loop) == (1, 0)
    assert (report.host_syncs_in_loop, report.races) == (0, 0)
    assert (report.bytes_to_host, report.bytes_to_device) == (FRAMES + LATENTS, LATENTS)
    # 3 transformers and 3 decoders, a cast for each, a sum a step, 1 + 1 + 3 copies, 2 memories.
    kinds = {"engine": 6, "region": 0, "combine": 3, "cast": 6, "copy": 5, "zero": 2}
    assert report.enqueues_by_kind == kinds
    assert report.enqueues == sum(kinds.values())
    assert report.kernels is None  # the bundle has no layer records
    assert report.measurement is None
    assert "no times" in render(report)


@pytest.mark.parametrize("sampler", ["unipc", "dmd"])
def test_the_device_is_given_what_is_counted(
    bundle: Any, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    devices: list[NullDevice] = []

    class Kept(NullDevice):
        def __init__(self) -> None:
            super().__init__()
            devices.append(self)

    monkeypatch.setattr(module, "NullDevice", Kept)
    report = bench(bundle.root, device="null", sampler=sampler)
    (device,) = devices
    (launch,) = (call for call in device.calls if call.kind == "launch")
    given = Counter(call.kind for call in launch.graph if call.kind in ENQUEUES)
    assert {kind: given[kind] for kind in ENQUEUES} == report.enqueues_by_kind


def test_dmd_takes_two_noises_more(bundle: Any) -> None:
    report = bench(bundle.root, device="null", sampler="dmd")
    assert report.bytes_to_device == 3 * LATENTS
    assert report.enqueues_by_kind["copy"] == 7


def test_auto_without_a_gpu_counts_and_says_so(
    bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "cuda_device_count", lambda: 0)
    assert bench(bundle.root).note == "no CUDA device is visible: exact counts, no times"


def test_stages_are_summed_up_by_rank() -> None:
    runs = [{"decode": ms / 1e3} for ms in (5.0, 1.0, 3.0, 2.0, 4.0)]
    decode = summarize(runs)["decode"]
    assert (decode.min_ms, decode.median_ms, decode.p95_ms) == (1.0, 3.0, pytest.approx(5.0))
    twenty = [{"x": ms / 1e3} for ms in range(1, 21)]
    assert summarize(twenty)["x"].p95_ms == 19.0


def test_stages_are_measured_on_a_device(
    bundle: Any, host_device: Any, host_platform: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(host_device, "milliseconds", lambda _begin, _end: float(next(clock)))
    monkeypatch.setattr(device, "cuda_device_count", lambda: 1)
    monkeypatch.setattr(module, "cuda_platform", lambda _bundle: host_platform(host_device))
    report = bench(bundle.root, runs=2, warmup=1, prompt="red fox")
    measured = report.measurement
    assert measured is not None
    assert (report.device, measured.runtime_cache) == ("NULL device", "unused")
    steps = ["step_0", "step_1", "step_2"]
    assert list(measured.times) == ["text", "text_kv", "video", *steps, "decode", "copy", "total"]
    # The first video is not counted: its five stages took 0 .. 4.
    step = measured.times["step_0"]
    assert (step.min_ms, step.median_ms, step.p95_ms) == (5.0, 7.5, 10.0)
    assert sum(call.kind == "launch" for call in host_device.calls) == 3
    # Every video pays for its text; its second profile was run once more in each of two loads.
    names = [call.name for call in host_device.calls if call.kind == "engine"]
    assert names.count("text_kv") + 2 == names.count("text_encoder")
    plan = report.device_bytes
    assert measured.memory_peak_bytes == plan.scratch + plan.arena + plan.fixed
    assert "after warm-up" in render(report)
    assert BenchReport.model_validate_json(report.to_json()) == report


def test_the_first_load_in_a_process_is_not_what_is_measured(
    bundle: Any, host_platform: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it compiles, compares and takes from CUDA hangs on caches and on earlier work."""
    opened: list[HostDevice] = []

    def platform(_bundle: Any) -> Platform:
        opened.append(HostDevice())
        return host_platform(opened[-1])

    monkeypatch.setattr(device, "cuda_device_count", lambda: 1)
    monkeypatch.setattr(module, "cuda_platform", platform)
    report = bench(bundle.root, device="cuda", runs=1, warmup=0)
    videos = [sum(call.kind == "launch" for call in each.calls) for each in opened]
    assert videos == [0, 1]
    assert report.measurement is not None


def test_times_of_an_emulation_are_labelled(
    bundle: Any, host_device: Any, host_platform: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "cuda_device_count", lambda: 1)
    monkeypatch.setattr(module, "_platform", lambda *_: host_platform(host_device))
    labels = {}
    for name in ("cuda", "emulated"):
        report = bench(bundle.root, device=name, runs=1, warmup=0)
        assert report.measurement is not None
        assert report.measurement.emulated is (name == "emulated")
        labels[name] = report.labels["measurement.times"]
        assert ("say nothing of that GPU" in render(report)) is (name == "emulated")
        assert BenchReport.model_validate_json(report.to_json()) == report
    assert labels == {"cuda": "measured", "emulated": "emulated"}
