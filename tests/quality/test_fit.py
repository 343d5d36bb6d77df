"""Rates and memory of every target, and what is said of a video that does not fit."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from fastwan.config import MODELS, TARGETS
from fastwan.quality import gpus
from fastwan.quality.fit import RESERVED_BYTES, TEXT_BYTES, lighter_texts, memory_note
from fastwan.quality.gpus import GPUS, rates_of


@pytest.mark.parametrize("name", [name for name, each in TARGETS.items() if "fp8" in each.recipes])
def test_every_target_of_fp8_has_a_dated_row(name: str) -> None:
    row = rates_of(name)
    assert (row.name, bool(row.date), bool(row.source)) == (name, True, True)
    assert row.sms >= 48
    assert row.memory_bytes % (1 << 30) == 0
    assert row.memory_bytes >= 16 << 30
    assert row.bytes_per_second > 2e11
    # An unknown FP8 rate makes a prediction unknown, not one at another format's rate.
    assert row.matrix_rate("FP8") > row.matrix_rate("BFloat16") or math.isnan(
        row.matrix_rate("FP8")
    )


def test_the_published_rows() -> None:
    row = GPUS["rtx4090"]
    assert (row.sms, row.memory_bytes, row.bytes_per_second) == (128, 24 << 30, 1.008e12)
    assert row.sober is not None
    assert row.sober.matrix_rate("FP8") < row.matrix_rate("FP8") == 330.3e12


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)
def test_every_target_of_a_model_runs_its_recipe_and_attention(model: Any) -> None:
    assert model.targets
    for name in model.targets:
        assert model.recipe in TARGETS[name].recipes
        assert model.attention in TARGETS[name].attentions


@pytest.mark.trt
def test_a_video_that_does_not_fit_is_told(
    tiny_bundle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastwan.bundle import open_bundle
    from fastwan.quality.report import inspect_bundle

    bundle = open_bundle(tiny_bundle)
    report = inspect_bundle(bundle)
    assert report.device_bytes is not None
    needed = report.device_bytes.total + RESERVED_BYTES
    row = GPUS["rtx5090"]
    monkeypatch.setitem(gpus.GPUS, "rtx5090", replace(row, memory_bytes=needed))
    assert memory_note(bundle.manifest) == report.note == ""
    monkeypatch.setitem(gpus.GPUS, "rtx5090", replace(row, memory_bytes=needed - 1))
    note = memory_note(bundle.manifest)
    assert note == inspect_bundle(bundle).note
    assert "rtx5090 has 1.1 GB" in note
    assert note.endswith("video, or with --text-encoder-recipe nvfp4 or fp8")
    # What is not there, or quantised already, cannot be made smaller.
    onnx, text = bundle.manifest.onnx, bundle.manifest.onnx.graphs["text_encoder"]
    others = {name: graph for name, graph in onnx.graphs.items() if name != "text_encoder"}
    linears = onnx.graphs["dit"].linears
    quantised = others | {"text_encoder": text.model_copy(update={"linears": linears})}
    for graphs in (others, quantised):
        changed = onnx.model_copy(update={"graphs": graphs})
        told = memory_note(bundle.manifest.model_copy(update={"onnx": changed}))
        assert told == note.removesuffix(", or with --text-encoder-recipe nvfp4 or fp8")


def test_a_lighter_text_encoder_is_one_that_the_target_runs() -> None:
    assert lighter_texts("rtx4080", TEXT_BYTES["bf16"]) == ("fp8",)
    assert lighter_texts("rtx5080", TEXT_BYTES["fp8"]) == ("nvfp4",)
    assert lighter_texts("rtx5080", 0) == ()
