"""A good bundle passes all checks, at its own shape and at a small one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator

import fastwan.quality.verify.subject
from fastwan.bundle import open_bundle
from fastwan.cli import main
from fastwan.config import VideoShape
from fastwan.errors import BadInput
from fastwan.quality.verify.report import VerifyReport
from fastwan.quality.verify.run import plan, run_checks, verify_bundle
from fastwan.quality.verify.subject import Subject
from fastwan.schema import BundleFacts

EXPECTED = {
    "integrity", "fp4_graph", "fp4_engines", "weights_bit_exact", "attention_nodes", "engine_plan",
    "packing_bit_exact", "quantizer_recipe", "quantizer_bit_exact", "graph_fp32", "graph_bf16",
    "cpu_reference", "sampler", "decoder", "text_encoder", "step_0", "step_1", "step_2", "frames",
}  # fmt: skip


@pytest.mark.trt
def test_a_good_bundle_passes_every_check(
    bundle_dir: Path, validator: Callable[[str], Draft202012Validator]
) -> None:
    done = CliRunner().invoke(main, ["verify", str(bundle_dir), "--json"])
    assert done.exit_code == 0, done.output
    validator("verify").validate(json.loads(done.stdout))
    report = VerifyReport.model_validate_json(done.stdout)
    assert report.bundle == BundleFacts.of(open_bundle(bundle_dir))
    assert {c.name: c.note for c in report.checks if not c.passed} == {}
    assert report.passed
    assert {check.name for check in report.checks} == EXPECTED
    assert len(report.checks) == len(EXPECTED)
    assert all(check.value is not None for check in report.checks)
    assert {check.label for check in report.checks} == {"measured", "emulated"}
    checks = {check.name: check for check in report.checks}
    # The chaotic figures are far from zero: the two sides are not one computation twice.
    assert checks["step_0"].value > 1e-3  # type: ignore[operator]
    assert 0 < checks["graph_fp32"].value < 1e-5  # type: ignore[operator]


@pytest.mark.trt
def test_a_checkpoint_replaces_the_digests(bundle_dir: Path, checkpoint: Any) -> None:
    subject = Subject(open_bundle(bundle_dir), checkpoint)
    report = run_checks(subject, {"weights_bit_exact", "packing_bit_exact"})
    assert report.passed
    assert all("checkpoint" in check.note for check in report.checks[1:])


@pytest.mark.trt
def test_checks_are_listed_and_chosen_by_name(bundle_dir: Path) -> None:
    words = ["verify", str(bundle_dir)]
    listed = CliRunner().invoke(main, [*words, "--list-checks"])
    assert listed.exit_code == 0
    names = listed.stdout.split()
    assert names[0] == "integrity"
    assert {"sampler", "decoder", "weights_bit_exact"} <= set(names)
    chosen = CliRunner().invoke(main, [*words, "--check", "sampler", "--json"])
    assert chosen.exit_code == 0
    report = VerifyReport.model_validate_json(chosen.stdout)
    assert [check.name for check in report.checks] == ["integrity", "sampler"]
    unknown = CliRunner().invoke(main, [*words, "--check", "samplers"])
    assert unknown.exit_code == 2
    assert "unknown check 'samplers': one of integrity, " in unknown.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--lora x", "pass --checkpoint too"),
        ("--taehv x", "pass --checkpoint too"),
        ("--picture x", "--device emulated"),
        ("--device emulated --check sampler", "--check"),
        ("--list-checks --json", "--json"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    bundle_dir: Path, words: str, message: str
) -> None:
    done = CliRunner().invoke(main, ["verify", str(bundle_dir), *words.split()])
    assert done.exit_code == 2
    assert message in done.stderr


def test_components_that_a_bundle_lacks_are_not_planned(bundle_dir: Path) -> None:
    bundle = open_bundle(bundle_dir)
    onnx = bundle.manifest.onnx
    for left_out in ("decoder", "text_encoder", "dit"):
        parts = ("time_tables", "text_kv", left_out)
        graphs = {n: g for n, g in onnx.graphs.items() if n not in parts}
        components = tuple(name for name in bundle.manifest.components if name != left_out)
        manifest = bundle.manifest.model_copy(
            update={
                "components": components,
                "onnx": onnx.model_copy(update={"graphs": graphs}),
            }
        )
        subject = Subject(type(bundle)(bundle.root, manifest))
        names = {name for planned in plan(subject) for name in planned.names}
        assert names
        assert left_out not in names
        assert ("frames" in names) == (left_out == "text_encoder")
        assert ("graph_fp32" in names) == (left_out != "dit")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the tiny bundle for one that is too long for a CPU.

    As many tokens on their side, so that the attention need not be traced for another length.
    """
    monkeypatch.setattr(fastwan.quality.verify.subject, "CPU_REFERENCE_TOKENS", 100)
    monkeypatch.setattr(fastwan.quality.verify.subject, "SMALL_SHAPE", VideoShape(160, 96, 9))


@pytest.mark.trt
@pytest.mark.usefixtures("small")
def test_a_long_video_is_verified_in_a_small_graph(bundle_dir: Path) -> None:
    subject = Subject(open_bundle(bundle_dir))
    assert subject.check_shape != subject.shape
    report = run_checks(subject)
    assert {c.name: c.note for c in report.checks if not c.passed} == {}
    assert {c.name for c in report.checks} == EXPECTED - {"cpu_reference"} | {"graph_structure"}
    assert "96x160x9" in next(c.note for c in report.checks if c.name == "step_0")


@pytest.mark.trt
@pytest.mark.usefixtures("small")
def test_a_long_graph_is_held_against_the_exporter(mutant: Any, kit: Any) -> None:
    with mutant.graph("dit.onnx") as graph:
        node = next(node for node in graph.node if node.op_type == "Attention")
        (scale,) = (a for a in node.attribute if a.name == "scale")
        scale.f *= 1.25
    mutant.rehash()
    assert mutant.failing("graph_structure") == {"graph_structure"}


def test_a_folder_without_a_bundle_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="manifest"):
        verify_bundle(tmp_path)
    with pytest.raises(BadInput, match="folder"):
        verify_bundle(tmp_path / "none")


@pytest.mark.trt
def test_a_manifest_of_another_model_is_bad_input(mutant: Any) -> None:
    with mutant.manifest() as fields:
        fields["onnx"]["model"]["dit"]["colour"] = "red"
    with pytest.raises(BadInput, match="colour"):
        verify_bundle(mutant.root)


def test_edge_cases_reach_what_they_name() -> None:
    import torch

    from fastwan.plugins.nvfp4 import quantize_activation
    from fastwan.quality.verify.quantizer import edge_cases

    x = torch.from_numpy(edge_cases())
    assert torch.equal(x, x.bfloat16().float())
    _, scale = quantize_activation(x.reshape(1, -1))
    scales = scale.float()
    assert (scales == 0).any()
    assert (scales == 448).any()
    assert ((scales > 0) & (scales < 2**-6)).any()
    exponents = np.unique(np.frexp(x[x != 0].numpy())[1])
    assert set(range(-132, 129)) <= set(exponents.tolist())
