"""The recorded schedule: the CPU's order of calls, one launch, no race, memory shared with care."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from fastwan.bundle import Bundle, open_bundle
from fastwan.config import SAMPLERS
from fastwan.errors import BadInput
from fastwan.manifest import Region
from fastwan.quality.races import find_races
from fastwan.runtime.cpu import components
from fastwan.runtime.device.null import ENQUEUES, Call, NullDevice, NullEngine
from fastwan.runtime.device.session import Session
from fastwan.runtime.model.samplers import schedule_of
from fastwan.runtime.pipeline import FastWanPipeline
from fastwan.runtime.recording.memory_plan import ALIGNMENT, aligned, bundle_memory, lifetimes, plan
from fastwan.runtime.recording.operations import LaunchRegion, RunEngine
from fastwan.runtime.recording.record import Recording, record


def operations(recording: Recording) -> Iterator[Any]:
    return (op for stage in recording.stages for op in stage.operations)


class Spy:
    """Notes the calls that components make of their executors, and every combination."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        make, combine = components.cpu_executor, components.combine
        calls = self.calls

        def cpu_executor(bundle: Bundle, graph: str, **options: Any) -> Any:
            executor = make(bundle, graph, **options)
            run = executor.run

            def spied(*args: Any, **kwargs: Any) -> Any:
                calls.append(graph)
                return run(*args, **kwargs)

            executor.run = spied  # type: ignore[method-assign]
            return executor

        def spied_combine(terms: Any) -> Any:
            calls.append("combine " + " ".join(f"{weight:.9g}" for weight, _ in terms))
            return combine(terms)

        monkeypatch.setattr(components, "cpu_executor", cpu_executor)
        monkeypatch.setattr(components, "combine", spied_combine)


@pytest.mark.parametrize("sampler", ["unipc", "dmd"])
def test_the_recorded_calls_are_those_of_the_cpu(
    bundle: Any, monkeypatch: pytest.MonkeyPatch, sampler: str
) -> None:
    spy = Spy(monkeypatch)
    FastWanPipeline.from_bundle(bundle.root, "cpu")("red fox", sampler=sampler)
    recording = record(open_bundle(bundle.root).manifest, schedule_of(SAMPLERS[sampler]))
    assert recording.calls == spy.calls
    assert Counter(call.split()[0] for call in recording.calls)["dit"] == 3


def test_segments_and_regions_run_in_the_order_of_the_manifest(segmented: Bundle) -> None:
    recording = record(segmented.manifest, schedule_of(SAMPLERS["unipc"]))
    step = next(stage for stage in recording.stages if stage.name == "step_1")
    names = [
        op.engine if isinstance(op, RunEngine) else op.inputs[0].buffer.name
        for op in step.operations
        if isinstance(op, (RunEngine, LaunchRegion))
    ]
    assert names == ["segment_00", "qkv.0", "segment_01", "qkv.1", "segment_02"]
    whole = [call for call in recording.calls if call == "dit"]
    assert len(whole) == 3


def test_a_region_of_a_later_version_is_refused(
    segmented: Bundle, make_region: Callable[..., Region]
) -> None:
    record(segmented.manifest, schedule_of(SAMPLERS["unipc"]))
    regions = {"region_00": make_region(0, op="FeedForward4"), "region_01": make_region(1)}
    other = segmented.manifest.model_copy(update={"regions": regions})
    with pytest.raises(BadInput, match="launches no FeedForward4"):
        record(other, schedule_of(SAMPLERS["unipc"]))


def test_constants_are_shared_and_written_once(segmented: Bundle) -> None:
    recording = record(segmented.manifest, schedule_of(SAMPLERS["unipc"]))
    layout = plan(recording)
    names = Counter(buffer.name for buffer in layout.fixed_buffers)
    assert names["rope_cos"] == 1
    assert {name for name in names if name.startswith("timestep")} == {
        "timestep=999",
        "timestep=857",
        "timestep=599",
    }
    written = {t.buffer for op in operations(recording) for t in op.writes}
    constants = {b for b in layout.fixed_buffers if b.content is not None}
    assert not written & constants
    # What stays without a content is what time_tables writes for each timestep, and text_kv once.
    assert Counter(b.name for b in set(layout.fixed_buffers) - constants) == {
        "temb": 3,
        "blocks.0.attn2.k": 1,
        "blocks.0.attn2.v": 1,
    }


def check_aliasing(recording: Recording, offsets: Mapping[Any, int]) -> list[tuple[str, str]]:
    """Pairs of buffers that overlap in memory and in time, or across streams."""
    lives, crossing = lifetimes(recording)
    wrong = []
    for left, right in combinations(offsets, 2):
        apart = (
            offsets[left] + left.size <= offsets[right]
            or offsets[right] + right.size <= offsets[left]
        )
        serial = lives[left].last < lives[right].first or lives[right].last < lives[left].first
        if not apart and not (serial and not {left, right} & crossing):
            wrong.append((left.name, right.name))
    return wrong


@pytest.mark.parametrize("sampler", ["unipc", "dmd"])
def test_buffers_share_memory_only_where_their_lifetimes_allow(
    segmented: Bundle, sampler: str
) -> None:
    recording = record(segmented.manifest, schedule_of(SAMPLERS[sampler]))
    layout = plan(recording)
    assert check_aliasing(recording, layout.offsets) == []
    assert layout.arena < layout.unshared
    assert all(offset % ALIGNMENT == 0 for offset in layout.offsets.values())
    # The check sees what it has to: a buffer moved onto one that lives beside it.
    beside = next(b for b in layout.offsets if b.name == "noise_0")
    moved = {**layout.offsets, recording.states[0].buffer: layout.offsets[beside]}
    assert {"noise_0", "latents"} in map(set, check_aliasing(recording, moved))


def play(session: Session, device: NullDevice) -> list[Call]:
    """Calls of one video after loading."""
    session.load()
    session.prepare(np.zeros(session.recording.prompt_embeds.shape, np.float32))
    begin = len(device.calls)
    shape = session.recording.latents.shape
    session.video([np.zeros(shape, np.float32)] * len(session.recording.noises))
    return device.calls[begin:]


@pytest.mark.parametrize("sampler", ["unipc", "dmd"])
def test_a_video_is_one_launch_without_an_allocation_or_a_wait_in_it(
    segmented: Bundle, open_session: Callable[..., Session], sampler: str
) -> None:
    device = NullDevice()
    session = open_session(device, sampler=sampler, manifest=segmented.manifest)
    calls = play(session, device)
    noises = 1 if sampler == "unipc" else 3
    # The host reads the frames, and the latents that they were made of.
    after = ["launch", "synchronize", "host", "host"]
    assert [c.kind for c in calls] == ["host"] * noises + after
    (graph,) = (call.graph for call in calls if call.kind == "launch")
    assert "time_tables" not in {call.name for call in graph}
    kinds = Counter(call.kind for call in graph)
    # 3 steps of 3 segments and 2 regions; 3 latents, and one copy of all of them.
    assert kinds["engine"] == 9 + 3
    assert kinds["region"] == 6
    assert kinds["combine"] == 3
    assert kinds["cast"] == 3 + 3
    assert kinds["copy"] == noises + 1 + 3
    assert kinds["zero"] == 2
    assert kinds["signal"] == 3
    assert not set(kinds) - {*ENQUEUES, "record", "wait", "mark", "signal"}
    assert find_races(device.calls) == []
    assert any(call.kind == "allocate" for call in device.calls)


@pytest.mark.parametrize("sampler", ["unipc", "dmd"])
def test_tables_are_computed_at_loading_once_for_each_timestep_and_never_again(
    segmented: Bundle, open_session: Callable[..., Session], sampler: str
) -> None:
    device = NullDevice()
    session = open_session(device, sampler=sampler, manifest=segmented.manifest)
    session.load()
    loaded = [call for call in device.calls if call.kind == "engine"]
    steps = session.recording.schedule.steps
    runs = [call for call in loaded if call.name == "time_tables"]
    assert len(runs) == len(steps) == 3
    # Before anything else runs, each from a timestep of its own to a table of its own.
    assert loaded[:3] == runs
    assert len({call.reads for call in runs}) == len({call.writes[0] for call in runs}) == 3
    begin = len(device.calls)
    play(session, device)
    session.denoise([np.zeros(session.recording.latents.shape)] * len(session.recording.noises))
    after = [inner for call in device.calls[begin:] for inner in (call, *call.graph)]
    assert "time_tables" not in {call.name for call in after}
    # Each step reads the table of its own timestep, which nothing else has written since.
    segments = [call for call in after if call.name == "segment_00"]
    assert [call.reads[1] for call in segments] == [call.writes[0] for call in runs] * 2
    tables = {call.writes[0] for call in runs}
    assert not [call for call in after if tables & set(call.writes)]
    assert find_races(device.calls) == []


def test_what_the_null_device_hands_out_is_what_was_planned(
    segmented: Bundle, open_session: Callable[..., Session]
) -> None:
    device = NullDevice()
    session = open_session(device, manifest=segmented.manifest)
    session.load()
    layout = session.plan
    assert device.total_bytes - device.free_bytes() == layout.scratch + layout.arena + layout.fixed
    assert layout.total == layout.weights + layout.scratch + layout.arena + layout.fixed
    assert layout.scratch == max(4096, session_region(session).workspace_bytes)


def session_region(session: Session) -> Any:
    return next(op.region for op in operations(session.recording) if isinstance(op, LaunchRegion))


def waits(session: Session) -> list[tuple[Any, int]]:
    """Every wait of the video that orders two streams."""
    return [
        (op, event)
        for stage in session.recording.video
        for op in stage.operations
        for event in op.waits
    ]


def test_every_wait_is_needed_and_the_checker_finds_each_one_missing(
    segmented: Bundle, open_session: Callable[..., Session]
) -> None:
    clean = open_session(NullDevice(), manifest=segmented.manifest)
    count = len(waits(clean))
    # A copy waits for its frames (3), the third decode for the first copy, the end for the last.
    assert count == 5
    for index in range(count):
        device = NullDevice()
        session = open_session(device, manifest=segmented.manifest)
        operation, event = waits(session)[index]
        operation.waits.remove(event)
        play(session, device)
        assert find_races(device.calls), f"wait {index} is missing and nothing is found"


def test_memory_of_a_bundle_is_known_from_its_manifest(bundle: Any, make_bundle: Callable) -> None:
    memory = bundle_memory(open_bundle(bundle.root))
    assert memory.total == memory.weights + memory.scratch + memory.arena + memory.fixed
    assert memory.scratch == 4096
    # Two noises more, which are read once and only pinned memory must hold together.
    dmd = bundle_memory(open_bundle(make_bundle("dmd", sampler="dmd").root))
    assert dmd.pinned_host - memory.pinned_host == 2 * aligned(4 * 16 * 3 * 2 * 4)


def test_an_engine_that_wants_more_scratch_here_than_foreseen_gets_it(
    segmented: Bundle, open_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = NullDevice()
    session = open_session(device, manifest=segmented.manifest)
    foreseen = session.plan.scratch
    session.load()
    assert session.plan.scratch == foreseen

    def more(engine: NullEngine) -> int:
        return foreseen + 4096 if engine._name == "segment_01" else engine._record.scratch_bytes

    monkeypatch.setattr(NullEngine, "scratch_bytes", property(more))
    device = NullDevice()
    session = open_session(device, manifest=segmented.manifest)
    play(session, device)
    assert session.plan.scratch == foreseen + 4096
    ((begin, end),) = {
        call.writes[-1]
        for call in device.calls
        if call.name == "segment_01" and call.kind == "engine"
    }
    assert end - begin == segmented.manifest.engines["segment_01"].scratch_bytes
    assert find_races(device.calls) == []
