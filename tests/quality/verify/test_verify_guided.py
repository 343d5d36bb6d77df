"""The undistilled model: built, inspected and held with its guided sampler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fastwan.bundle import open_bundle
from fastwan.config import SAMPLERS
from fastwan.quality.bench import counts
from fastwan.quality.report import inspect_bundle
from fastwan.quality.verify.run import run_checks
from fastwan.quality.verify.subject import Subject
from fastwan.runtime.model.samplers import schedule_of
from fastwan.runtime.pipeline import FastWanPipeline
from testkit.once import Once
from testkit.tiny_bundles import guided_bundle

pytestmark = pytest.mark.trt

STEPS = ("step_0", "step_1", "step_2")


@pytest.fixture(scope="session")
def bundle_dir(once: Once, tiny_checkpoint: Path) -> Path:
    """Transformer and decoder of the tiny model, unquantised, for an Ada GPU."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
    return guided_bundle(once, tiny_checkpoint)


def test_a_guided_bundle_passes_and_plays_its_steps_twice(bundle_dir: Path) -> None:
    bundle = open_bundle(bundle_dir)
    manifest = bundle.manifest
    spec = SAMPLERS["unipc-50"]
    assert (manifest.sampler, manifest.samplers) == ("unipc-50", (spec,))
    assert not any("unipc-50" in note for note in manifest.onnx.model.notes)
    report = run_checks(Subject(bundle), ("sampler", *STEPS))
    assert report.passed
    assert {check.name for check in report.checks} >= {"sampler", *STEPS, "frames"}

    figures = inspect_bundle(bundle)
    assert figures.components["dit"].linears == 0
    assert figures.prediction is not None
    report = counts(bundle, schedule_of(spec))
    assert report.graph_launches == 1
    assert (report.allocations_in_loop, report.host_syncs_in_loop, report.races) == (0, 0, 0)
    step = [engine for engine in manifest.engines.values() if engine.runs == "step"]
    latents = manifest.onnx.model.shape.latent_frames
    assert report.enqueues_by_kind["engine"] == 2 * 50 * len(step) + latents


def test_a_guided_bundle_is_called_like_wan_pipeline(bundle_dir: Path) -> None:
    pipe = FastWanPipeline.from_bundle(bundle_dir, "cpu")
    assert (pipe.guidance_scale, pipe.num_timesteps) == (5.0, 50)
    # Two embeddings, since the bundle has no text encoder; the first step is enough.
    embeds = [0.1 * (index + 1) for index in range(2)]

    shape = pipe.components.text_shape
    texts = [torch.full(shape, value) for value in embeds]

    def stop(owner: Any, *_: Any) -> dict[str, Any]:
        owner._interrupt = True
        return {}

    def first(**arguments: Any) -> Any:
        return pipe(
            prompt_embeds=texts[0], output_type="latent", callback_on_step_end=stop, **arguments
        ).frames

    guided = first(negative_prompt_embeds=texts[1], num_inference_steps=50)
    assert not torch.equal(guided, first(guidance_scale=1.0))
    assert torch.equal(guided, first(negative_prompt_embeds=texts[1], guidance_scale=5.0))


@pytest.mark.parametrize("change", [{"guidance": 6.0}, {"shift": 5.0}, {"steps": 40}])
def test_other_constants_than_the_published_fail(mutant: Any, change: dict[str, Any]) -> None:
    assert mutant.failing("sampler") == set()
    with mutant.manifest() as fields:
        fields["samplers"][0].update(change)
    assert mutant.failing("sampler") == {"sampler"}
