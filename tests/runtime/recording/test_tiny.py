"""The tiny model itself: real engines' records, the CPU's calls, and what one video takes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fastwan.bundle import Bundle, open_bundle
from fastwan.config import SAMPLERS
from fastwan.quality.bench import counts
from fastwan.runtime.cpu import components
from fastwan.runtime.device.constants import initializers
from fastwan.runtime.model.samplers import schedule_of
from fastwan.runtime.pipeline import FastWanPipeline
from fastwan.runtime.recording.memory_plan import plan
from fastwan.runtime.recording.record import record

pytestmark = pytest.mark.trt


@pytest.fixture(scope="module")
def tiny(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


@pytest.mark.parametrize("sampler", ["unipc", "dmd"])
def test_the_null_device_and_the_cpu_make_the_same_calls(
    tiny: Bundle, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    calls: list[str] = []
    make, combine = components.cpu_executor, components.combine

    def cpu_executor(bundle: Bundle, graph: str, **options: Any) -> Any:
        executor = make(bundle, graph, **options)
        run = executor.run

        def noted(*arguments: Any) -> Any:
            calls.append(graph)
            return run(*arguments)

        executor.run = noted  # type: ignore[method-assign]
        return executor

    def noted_combine(terms: Any) -> Any:
        calls.append("combine " + " ".join(f"{weight:.9g}" for weight, _ in terms))
        return combine(terms)

    monkeypatch.setattr(components, "cpu_executor", cpu_executor)
    monkeypatch.setattr(components, "combine", noted_combine)
    FastWanPipeline.from_bundle(tiny.root, "cpu")("a red fox", sampler=sampler)
    assert record(tiny.manifest, schedule_of(SAMPLERS[sampler])).calls == calls


def test_one_video_of_the_tiny_model(tiny: Bundle) -> None:
    report = counts(tiny, schedule_of(SAMPLERS["unipc"]))
    segments = sum(
        e.component == "dit" and e.runs == "step" for e in tiny.manifest.engines.values()
    )
    kinds = Counter(report.enqueues_by_kind)
    assert kinds["engine"] == 3 * segments + 3
    assert kinds["region"] == 3 * len(tiny.manifest.regions)
    # What a step launches: nothing that a timestep or the prompt alone decides.
    inside = {name: sum(r["kind"] != "host" for r in tiny.layers[name]) for name in tiny.layers}
    step = sum(n for name, n in inside.items() if tiny.manifest.engines[name].runs == "step")
    own = 2 * kinds["region"] + kinds["combine"] + kinds["cast"]
    assert report.kernels == 3 * step + 3 * inside["decoder"] + own
    assert not [r for r in tiny.layers["segment_00"] if "time" in str(r["nodes"])]
    assert report.graph_launches == 1
    assert report.allocations_in_loop == report.host_syncs_in_loop == report.races == 0
    # The frames, and the latents behind the last step, which the host holds to be finite.
    assert report.bytes_to_host == 9 * 96 * 160 * 3 + 4 * 16 * 3 * 12 * 20
    assert report.kernels > report.enqueues
    layout = plan(record(tiny.manifest, schedule_of(SAMPLERS["unipc"])))
    assert layout.arena < layout.unshared / 2


def test_every_constant_of_a_region_is_in_the_bundle(tiny: Bundle) -> None:
    specs = {spec.name: spec for r in tiny.manifest.regions.values() for spec in r.constants}
    assert specs
    found = dict(initializers(tiny, list(specs)))
    layout = plan(record(tiny.manifest, schedule_of(SAMPLERS["unipc"])))
    sizes = {buffer.name: buffer.size for buffer in layout.fixed_buffers}
    assert {name: len(data) for name, data in found.items()} == {n: sizes[n] for n in specs}
