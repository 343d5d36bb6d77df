"""The command line of what needs a Hopper GPU, where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from fastwan.bundle import Bundle, open_bundle
from fastwan.cli import main
from fastwan.errors import BadInput
from fastwan.runtime.device import choice


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "cuda_device_count", lambda: 0)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["generate", "{bundle}", "fox", "-o", "{out}", "--device", "emulated"], 3, "no CUDA"),
        (["verify", "{bundle}", "--device", "emulated"], 3, "no CUDA device is visible"),
        (["verify", "{bundle}", "--device", "emulated", "--picture", "{out}"], 3, "no CUDA"),
        (["verify", "{bundle}", "--picture", "{out}"], 2, "no picture is made on the CPU"),
    ],
)
def test_what_is_missing_is_one_line(
    tiny_bundle: Path, tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    out = tmp_path / "x.mp4"
    done = CliRunner().invoke(main, [word.format(bundle=tiny_bundle, out=out) for word in words])
    assert done.exit_code == code
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_auto_is_the_cpu_and_never_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choice.resolve_device("auto").name == "cpu"
    monkeypatch.setattr(choice, "cuda_device_count", lambda: 1)
    assert choice.resolve_device("auto").name == "cuda"
    chosen = choice.resolve_device("emulated")
    assert chosen.name == "emulated"
    assert "say nothing of that GPU" in chosen.note


def test_a_bundle_with_attention_in_its_engines_is_refused(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    choice.require_emulable(bundle)
    inside = bundle.manifest.model_copy(update={"regions": {}, "attention": "native"})
    with pytest.raises(BadInput, match="native is inside them"):
        choice.require_emulable(Bundle(bundle.root, inside))


def test_a_bundle_whose_engines_take_fp4_activations_is_played(lifted_bundle: Path) -> None:
    bundle = open_bundle(lifted_bundle)
    taken = {spec.dtype for each in bundle.manifest.engines.values() for spec in each.inputs}
    assert "float4_e2m1fn" in taken
    choice.require_emulable(bundle)
