"""What inspect says: exact figures of a small bundle, labelled."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from fastwan.bundle import Bundle
from fastwan.quality.inspection import InspectReport
from fastwan.quality.report import build_report, inspect_bundle
from fastwan.quality.report_text import render

Make = Callable[..., Bundle]
TOKENS, WIDTH = 128, 256
QUANTISE = TOKENS * WIDTH * 2 + TOKENS * WIDTH // 2 + 2048


def gemm_bytes(n: int) -> int:
    return TOKENS * WIDTH // 2 + 2048 + WIDTH * n // 2 + 4 + WIDTH * n // 16 + TOKENS * n * 2


FIRST = QUANTISE + gemm_bytes(3 * WIDTH)
SECOND = QUANTISE + gemm_bytes(WIDTH) + 2 * 2 * 3000


def test_figures_of_a_component(make_bundle: Make) -> None:
    report = inspect_bundle(make_bundle())
    assert list(report.components) == ["text_encoder", "dit", "decoder"]
    dit = report.components["dit"]
    names = ("time_tables", "text_kv", "segment_00", "segment_01")
    assert (dit.files, dit.bytes) == (4, sum(len(f"plan of dit/{n}.engine") for n in names))
    assert (dit.linears, dit.quantised_linears, dit.kernels) == (2, 2, 7)
    assert dit.quantised_gemm_share == 1.0
    assert dit.kinds == {"memory": 5, "gemm": 2}
    assert dit.dtypes == {"BFloat16": 3, "FP4E2M1": 4}
    assert dit.scratch_bytes == 4096  # shared by all engines, so the largest
    assert report.components["decoder"].linears == 0


def test_a_run_is_one_step_one_latent_or_one_prompt(make_bundle: Make) -> None:
    report = inspect_bundle(make_bundle())
    dit, decoder, text = (report.components[n] for n in ("dit", "decoder", "text_encoder"))
    region = report.regions["region_00"]
    assert region.kernels == 2
    assert dit.per_run.bytes_moved == FIRST + SECOND + region.bytes_moved
    assert dit.per_run.kernels == 5 + region.kernels
    assert dit.per_run.flops == 2 * TOKENS * WIDTH * 4 * WIDTH + region.flops
    engines = [report.engines[name] for name in ("segment_00", "segment_01")]
    times = [each.predicted_ms for each in (*engines, region)]
    assert dit.per_run.predicted_ms == pytest.approx(sum(filter(None, times)))
    assert dit.per_prompt is not None
    assert dit.per_timestep is not None
    assert dit.per_prompt.bytes_moved == 2 * 2 * 2000
    assert dit.per_timestep.bytes_moved == 2 * 2 * 1000
    assert decoder.per_run.bytes_moved == 2 * 2 * (4000 + 5000)
    assert (decoder.per_prompt, decoder.per_timestep) == (None, None)
    # A prompt of 128 tokens runs in the second profile, which has two kernels.
    assert text.per_run.bytes_moved == 2 * (2 * 2 * 128)
    assert text.kernels == 2


def test_the_prediction_is_the_recorded_video(make_bundle: Make) -> None:
    report = inspect_bundle(make_bundle())
    prediction = report.prediction
    assert prediction is not None
    stages = prediction.stages
    steps = [stages[f"step_{index}"] for index in range(3)]
    assert list(stages) == ["tables", "text", "text_kv", *(f"step_{i}" for i in range(3)), "decode"]
    assert prediction.step_ms == pytest.approx(sum(s.predicted_ms or 0 for s in steps) / 3)
    video = [stage.predicted_ms or 0 for name, stage in stages.items() if name != "tables"]
    assert prediction.video_ms == pytest.approx(sum(video))
    assert stages["tables"].kernels == 3
    # Two segments, the region's two launches, a cast and a sum.
    assert [step.kernels for step in steps] == [9, 9, 9]
    assert [step.enqueues for step in steps] == [6, 5, 5]  # the noise is uploaded before the first
    assert "step_2, decode" in prediction.covers
    assert "not the time tables" in prediction.covers
    assert prediction.published_step_ms is None  # another size than the published one


def test_a_sampler_with_a_step_more_predicts_a_longer_video(make_bundle: Make) -> None:
    bundle = make_bundle()
    usual = inspect_bundle(bundle).prediction
    more = replace(bundle.manifest.samplers[0], steps=4)
    manifest = bundle.manifest.model_copy(update={"samplers": (more,)})
    longer = inspect_bundle(Bundle(bundle.root, manifest)).prediction
    assert usual is not None
    assert longer is not None
    assert list(longer.stages)[-2:] == ["step_3", "decode"]
    step = longer.stages["step_3"].predicted_ms
    assert step is not None
    assert (longer.video_ms or 0) - (usual.video_ms or 0) == pytest.approx(step, rel=0.2)


def test_a_gpu_without_rates_has_no_prediction(make_bundle: Make) -> None:
    report = inspect_bundle(make_bundle("rtx3090"))
    run = report.components["dit"].per_run
    assert run.bytes_moved > 0
    assert run.predicted_ms is None
    assert report.prediction is not None
    assert (report.prediction.gpu, report.prediction.step_ms, report.prediction.video_ms) == (
        None, None, None,
    )  # fmt: skip
    assert report.prediction.stages["decode"].kernels == 9  # a cast before each of 3
    assert "no prediction" in text_of(report)


def test_device_memory_is_what_the_runtime_plans(make_bundle: Make) -> None:
    bundle = make_bundle()
    memory = inspect_bundle(bundle).device_bytes
    assert memory is not None
    assert memory.scratch >= 4096
    files = bundle.manifest.files
    assert memory.weights == sum(files[e.file].bytes for e in bundle.manifest.engines.values())
    assert memory.total == memory.weights + memory.scratch + memory.arena + memory.fixed


@pytest.mark.parametrize("components", [("decoder",), ("text_encoder",), ("dit",)])
def test_a_bundle_without_a_transformer_makes_no_video_and_says_so(
    make_bundle: Make, components: tuple[str, ...]
) -> None:
    report = inspect_bundle(make_bundle(components=components))
    playable = "dit" in components
    assert (report.device_bytes is not None) == playable
    assert (report.prediction is not None) == playable
    assert ("has no transformer" in report.note) != playable
    assert ("has no transformer" in text_of(report)) != playable
    (figures,) = report.components.values()
    assert figures.per_run.predicted_ms is not None


def test_the_report_of_a_build(make_bundle: Make) -> None:
    bundle = make_bundle()
    inspected = inspect_bundle(bundle)
    report = build_report(inspected, bundle.manifest)
    assert report.bundle == inspected.bundle
    assert report.stages == {"export": 1.0}
    dit = report.components["dit"]
    assert dit.model_dump() == {
        name: getattr(inspected.components["dit"], name) for name in dit.model_dump()
    }
    assert set(dit.model_dump()) == {
        "files", "bytes", "linears", "quantised_linears", "kernels", "scratch_bytes",
    }  # fmt: skip


def text_of(report: InspectReport) -> str:
    stream = io.StringIO()
    Console(file=stream, width=160).print(render(report))
    return stream.getvalue()


def test_the_text_has_the_same_figures(make_bundle: Make) -> None:
    text = text_of(inspect_bundle(make_bundle()))
    for part in ("dit (one step)", "decoder (one latent frame)", "FP4E2M1:4", "100%", "step_2"):
        assert part in text
    assert text.count("predicted") >= 5
    assert "measured" in text
