"""What inspect prints: exact figures of a small bundle, labelled."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from fastwan.bundle import Bundle, open_bundle
from fastwan.config import SAMPLERS, TARGETS
from fastwan.engines.build import build_bundle
from fastwan.engines.builder import BuildRequest
from fastwan.engines.source import EngineSource
from fastwan.quality.report import LABELS, build_report, inspect_bundle
from fastwan.quality.report_text import render

FIELDS = {
    "files", "bytes", "linears", "fp4_linears", "kernels", "scratch_bytes", "bytes_moved",
    "predicted_ms",
}  # fmt: skip


@pytest.fixture
def make_bundle(
    onnx_bundle: Path, bundle_source: Callable[..., EngineSource], fake_backend: Any,
    kit: SimpleNamespace, tmp_path: Path,
) -> Callable[..., Bundle]:  # fmt: skip
    def make(target: str = "rtx5090") -> Bundle:
        quantise = kit.record(
            "quantise", "kgen", inputs=[("BFloat16", (1, 128, 256))],
            outputs=[("FP4E2M1", (1, 128, 256)), ("FP8", (1, 1, 4, 32, 4, 4))],
        )  # fmt: skip
        fake_backend.layers = (quantise, *fake_backend.layers)
        sources = [bundle_source(name) for name in ("time_tables", "text_kv", "dit")]
        sources.append(bundle_source("decoder", component="decoder", linears=()))
        request = BuildRequest(
            target=TARGETS[target], backend=fake_backend, attention="native",
            samplers=(SAMPLERS["unipc"],),
            components=("dit", "decoder"), use_cache=False,
        )  # fmt: skip
        build_bundle(onnx_bundle, tmp_path / "bundle", sources, request)
        return open_bundle(tmp_path / "bundle")

    return make


PLANS = b"plantime_tables" + b"plantext_kv" + b"plandit"
QUANTISE_BYTES = 128 * 256 * 2 + 128 * 256 // 2 + 2048
GEMM_BYTES = 128 * 256 // 2 + 2048 + 256 * 512 // 2 + 4 + 256 * 512 // 16 + 128 * 512 * 2


def test_figures_of_a_component(make_bundle: Callable[..., Bundle]) -> None:
    report: dict[str, Any] = inspect_bundle(make_bundle())
    assert set(report["components"]) == {"dit", "decoder"}
    dit = report["components"]["dit"]
    assert set(dit) >= FIELDS
    assert (dit["files"], dit["bytes"]) == (3, len(PLANS))
    assert (dit["linears"], dit["fp4_linears"], dit["kernels"]) == (3, 3, 6)
    assert dit["fp4_gemm_share"] == 1.0
    assert dit["kinds"] == {"memory": 3, "gemm": 3}
    assert dit["dtypes"] == {"FP4E2M1": 6}
    assert dit["scratch_bytes"] == 1024  # shared by all engines, so the largest
    # One step runs `dit`, and neither `time_tables` nor `text_kv`.
    assert dit["bytes_moved"] == QUANTISE_BYTES + GEMM_BYTES
    assert dit["memory_bound_bytes"] == QUANTISE_BYTES
    assert dit["flops"] == 2 * 128 * 256 * 512
    assert dit["predicted_ms"] == pytest.approx(
        (QUANTISE_BYTES + GEMM_BYTES) / 1.79e12 * 1e3 + 2 * 2e-3
    )
    # The three fake engines move as much.
    for apart in ("per_prompt", "per_timestep"):
        assert dit[apart]["bytes_moved"] == dit["bytes_moved"]
        assert dit[apart]["predicted_ms"] == dit["predicted_ms"]
    assert report["components"]["decoder"]["linears"] == 0


def test_a_video_is_its_parts(make_bundle: Callable[..., Bundle]) -> None:
    report: dict[str, Any] = inspect_bundle(make_bundle())
    run = report["components"]["dit"]["predicted_ms"]
    prediction = report["prediction"]
    assert prediction["step_ms"] == pytest.approx(run)
    # text_kv once, three steps, 9 frames = 3 latents; tables are there before the video.
    assert prediction["video_ms"] == pytest.approx(run * (1 + 3 + 3))
    assert "not the time tables" in prediction["covers"]
    assert prediction["published_step_ms"] is None  # another size than the published one
    floor = 2 * 128 * 256 * 512 / 1676e12 * 1e3
    assert prediction["step_floor_ms"] == pytest.approx(floor)


def test_a_gpu_without_rates_has_no_prediction(make_bundle: Callable[..., Bundle]) -> None:
    report: dict[str, Any] = inspect_bundle(make_bundle("gb10"))
    assert report["components"]["dit"]["bytes_moved"] == QUANTISE_BYTES + GEMM_BYTES
    assert report["components"]["dit"]["predicted_ms"] is None
    assert report["prediction"]["step_ms"] is None
    assert "no prediction" in text_of(report)


def test_device_memory(make_bundle: Callable[..., Bundle]) -> None:
    memory: Any = inspect_bundle(make_bundle())["device_bytes"]
    assert memory["scratch"] == 1024
    assert memory["weights"] == len(PLANS + b"plandecoder")
    # The fake engines read and write one tensor each; the text's and three of the time's stay
    # while the step runs.
    assert memory["tensors"] == (1 + 3 + 1) * 128 * 256 * 2
    assert memory["total"] == memory["weights"] + memory["scratch"] + memory["tensors"]


def test_every_figure_is_labelled(make_bundle: Callable[..., Bundle]) -> None:
    report: dict[str, Any] = inspect_bundle(make_bundle())
    assert report["labels"] == dict(LABELS)
    assert set(LABELS.values()) <= {"measured", "emulated", "predicted"}
    for figures in report["components"].values():
        assert set(figures) - {"kinds", "per_prompt", "per_timestep"} <= set(LABELS)
    assert json.loads(json.dumps(report)) == report


def test_the_report_of_a_build(make_bundle: Callable[..., Bundle]) -> None:
    bundle = make_bundle()
    report: dict[str, Any] = build_report("out", bundle.manifest, inspect_bundle(bundle))
    assert set(report) >= {"bundle", "target", "backend", "attention", "seconds", "peak_rss_bytes"}
    assert report["components"]["dit"] == {
        "files": 3, "bytes": len(PLANS), "linears": 3, "fp4_linears": 3, "kernels": 6,
        "scratch_bytes": 1024,
    }  # fmt: skip
    json.dumps(report)


def text_of(report: dict[str, Any]) -> str:
    stream = io.StringIO()
    Console(file=stream, width=160).print(render(report))
    return stream.getvalue()


def test_the_text_has_the_same_figures(make_bundle: Callable[..., Bundle]) -> None:
    text = text_of(inspect_bundle(make_bundle()))
    for part in ("dit (one step)", "decoder (one latent frame)", "FP4E2M1:6", "100%"):
        assert part in text
    assert text.count("predicted") >= 5
    assert "measured" in text
