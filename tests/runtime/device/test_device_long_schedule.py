"""A sampler of many guided steps on a device: sums that its kernel takes, memory that stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fastwan.bundle import open_bundle
from fastwan.config import SAMPLERS, SamplerSpec
from fastwan.plugins import elementwise
from fastwan.quality.bench import counts
from fastwan.quality.races import find_races
from fastwan.runtime.device.session import Session
from fastwan.runtime.model.noise import draw, generator_for
from fastwan.runtime.model.samplers import schedule_of
from fastwan.runtime.model.schedule import MAX_TERMS
from fastwan.runtime.pipeline import FastWanPipeline
from fastwan.runtime.recording.memory_plan import plan
from fastwan.runtime.recording.operations import Combine
from fastwan.runtime.recording.record import record


def spec(steps: int = 50, guidance: float = 5.0) -> SamplerSpec:
    """The base model's sampler, with other steps or another scale."""
    return replace(SAMPLERS["unipc-50"], steps=steps, guidance=guidance)


def embeds_of(pipe: FastWanPipeline, *prompts: str) -> list[np.ndarray]:
    encoder = pipe.components.text_encoder
    return [encoder.encode(prompt) for prompt in prompts]


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_no_sum_has_more_terms_than_the_kernel_takes(bundle: Any, guidance: float) -> None:
    assert MAX_TERMS == elementwise.MAX_TERMS
    schedule = schedule_of(spec(guidance=guidance))
    recording = record(open_bundle(bundle.root).manifest, schedule)
    sums = [
        len(terms)
        for operation in recording.operations
        if isinstance(operation, Combine)
        for terms in operation.sums
    ]
    # The steps, the predictions that later ones read, the anchors, and what guides.
    anchors = sum(bool(step.anchor) for step in schedule.steps)
    read = sum(schedule.last_use(index) > index for index in range(50))
    assert len(sums) == 50 + read + anchors + 50 * (schedule.prompts - 1)
    assert max(sums) <= elementwise.MAX_TERMS
    assert anchors > 5


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_fifty_steps_on_a_device_are_the_cpus_to_the_byte(
    make_bundle: Callable[..., Any],
    open_session: Callable[..., Session],
    host_device: Any,
    guidance: float,
) -> None:
    sampler = spec(guidance=guidance)
    made = make_bundle(sampler=sampler.name, samplers=(sampler,))
    pipe = FastWanPipeline.from_bundle(made.root, "cpu")
    negative = {} if guidance == 1 else {"negative_prompt": "fox runs"}
    expected = pipe("red fox", seed=7, **negative, output_type="uint8").frames[0]
    session = open_session(host_device, sampler=sampler)
    session.prepare(*embeds_of(pipe, "red fox", "fox runs")[: schedule_of(sampler).prompts])
    shape = session.recording.latents.shape
    noises = draw(shape, session.recording.schedule, generator_for(None, 7))
    np.testing.assert_array_equal(session.video(noises), expected)
    assert find_races(host_device.calls) == []


def test_a_guided_video_is_one_launch_without_allocations_or_waits(
    make_bundle: Callable[..., Any],
) -> None:
    sampler = spec()
    bundle = open_bundle(make_bundle(sampler=sampler.name, samplers=(sampler,)).root)
    guided = counts(bundle, schedule_of(sampler))
    alone = counts(bundle, schedule_of(replace(sampler, guidance=1.0)))
    for report in (guided, alone):
        assert report.graph_launches == 1
        assert (report.allocations_in_loop, report.host_syncs_in_loop, report.races) == (0, 0, 0)
    # A second run of the transformer a step, from the same engine.
    runs = {name: report.enqueues_by_kind["engine"] for name, report in
            (("guided", guided), ("alone", alone))}  # fmt: skip
    assert runs["guided"] - runs["alone"] == 50
    assert guided.device_bytes.weights == alone.device_bytes.weights
    assert guided.device_bytes.scratch == alone.device_bytes.scratch


def test_memory_does_not_grow_with_the_steps(bundle: Any) -> None:
    manifest = open_bundle(bundle.root).manifest
    plans = [plan(record(manifest, schedule_of(spec(steps)))) for steps in (20, 50)]
    assert plans[0].arena == plans[1].arena
    assert plans[0].pinned == plans[1].pinned
    assert plans[0].unshared < plans[1].unshared


def test_a_session_wants_as_many_prompts_as_its_sampler_reads(
    open_session: Callable[..., Session], host_device: Any
) -> None:
    session = open_session(host_device, sampler=spec(2))
    embeds = np.zeros(session.recording.prompt_embeds.shape, np.float32)
    session.prepare(embeds, embeds)
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        session.prepare(embeds)
